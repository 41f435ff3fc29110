"""Every operation on both machines against NumPy as this file uses it: the same dtype, shape and elements."""

import json
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import HealthCheck, given, settings

from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_kernels import KERNELS
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.operations import OPERATIONS, infer
from propeller.tensors.python_machine import PythonMachine
from propeller.tensors.shapes import TensorError
from support import window_cases

Draw = Callable[..., Any]
Case = tuple[list[Any], Any, Any]
"""Operands, params, and what NumPy gives."""

ORDER = ["bool", "uint8", "int64", "float32", "float64"]
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.25, 3.0, 0.1, 7.3, np.nan, np.inf, -np.inf])
FINITE = st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.25, 3.0, 0.1, 7.3])
INTS = st.integers(-9, 9)


def values(dtype: str, *, finite: bool = False) -> st.SearchStrategy[Any]:
    if dtype.startswith("float"):
        return (FINITE if finite else FLOATS).map(lambda value: float(np.dtype(dtype).type(value)))
    return {"bool": st.booleans(), "uint8": st.integers(0, 255), "int64": INTS}[dtype]


def array(draw: Draw, shape: Any, *dtypes: str, finite: bool = False) -> Any:
    dtype = draw(st.sampled_from(dtypes or ORDER))
    return draw(hnp.arrays(dtype, shape, elements=values(dtype, finite=finite), fill=st.nothing()))


def some(draw: Draw, *dtypes: str, least: int = 0, dims: int = 0, finite: bool = False) -> Any:
    shape = draw(hnp.array_shapes(min_dims=dims, max_dims=3, min_side=least, max_side=3))
    return array(draw, shape, *dtypes, finite=finite)


def together(draw: Draw, *dtypes: str, count: int = 2) -> list[Any]:
    """Arrays whose shapes broadcast; one may be a Python number instead."""
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=0, max_side=3))
    made = [array(draw, shape, *dtypes) for shape in shapes.input_shapes]
    at = draw(st.integers(-3, count - 1))
    if at >= 0 and not dtypes:
        made[at] = draw(st.one_of(FLOATS, INTS, st.booleans()))
    return made


def kind(value: Any) -> str:
    return value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__


def meet(*operands: Any) -> str:
    """The larger dtype; a Python number only lifts what cannot hold its kind."""
    strong = [kind(each) for each in operands if kind(each) in ORDER]
    weak = {kind(each) for each in operands} - set(ORDER)
    least = "float32" if "float" in weak else "int64" if "int" in weak else "bool"
    return max([*strong, least], key=ORDER.index)


def floating(dtype: str) -> str:
    return dtype if dtype.startswith("float") else "float32"


def unary(function: Callable[..., Any], *, to_float: bool = False) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        x = some(draw)
        dtype = floating(kind(x)) if to_float else "int64" if kind(x) == "bool" else kind(x)
        return [x], None, function(x.astype(dtype))

    return case


def binary(
    function: Callable[..., Any], *, numeric: bool = True, to_float: bool = False
) -> Callable[..., Any]:
    def case(draw: Draw) -> Case:
        operands = together(draw)
        dtype = meet(*operands)
        dtype = floating(dtype) if to_float else "int64" if numeric and dtype == "bool" else dtype
        return operands, None, function(*(np.asarray(each, dtype) for each in operands))

    return case


def compare(function: Callable[..., Any]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        operands = together(draw)
        return operands, None, function(*operands)

    return case


def logical(function: Callable[..., Any], count: int) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        operands = together(draw, "bool", count=count)
        return operands, None, function(*operands)

    return case


def where(draw: Draw) -> Case:
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, min_side=0, max_side=3))
    c, x, y = (
        array(draw, shape, *dtypes)
        for shape, dtypes in zip(shapes.input_shapes, (["bool"], [], []), strict=True)
    )
    if draw(st.booleans()):
        y = draw(st.one_of(FLOATS, INTS, st.just(300)))
    return [c, x, y], None, np.where(c, *(np.asarray(each, meet(x, y)) for each in (x, y)))


def matmul(draw: Draw) -> Case:
    shapes = draw(
        hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=1, min_side=0, max_side=3)
    )
    x, y = (array(draw, shape, *ORDER[1:], finite=True) for shape in shapes.input_shapes)
    dtype = meet(x, y)
    return [x, y], None, np.matmul(x.astype(dtype), y.astype(dtype))


def reduce(function: Callable[..., Any], name: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        x = some(draw, least=1 if name in {"max", "min", "logsumexp"} else 0)
        axes = (
            draw(
                st.none()
                | st.lists(st.integers(-x.ndim, x.ndim - 1), unique_by=lambda n: n % x.ndim, max_size=x.ndim)
            )
            if x.ndim
            else None
        )
        keep = draw(st.booleans())
        dtype = kind(x)
        if name in {"mean", "logsumexp"}:
            dtype = floating(dtype)
        elif name == "sum" and dtype in {"bool", "uint8"}:
            dtype = "int64"
        axis = None if axes is None else tuple(axes)
        with warnings.catch_warnings(action="ignore"):  # the mean of nothing
            return [x], [axes, keep], function(x.astype(dtype), axis=axis, keepdims=keep)

    return case


def logsumexp(x: Any, **axes: Any) -> Any:
    """SciPy's, which makes float64 of float32, and an axis of a number."""
    return np.asarray(scipy.special.logsumexp(x, **axes), x.dtype).reshape(x.sum(**axes).shape)


def cumsum(draw: Draw) -> Case:
    x = some(draw, dims=1, finite=True)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    dtype = "int64" if kind(x) in {"bool", "uint8"} else kind(x)
    return [x], axis, np.cumsum(x, axis=axis, dtype=dtype)


def argsort(draw: Draw) -> Case:
    x = some(draw, dims=1)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    return [x], axis, np.argsort(x, axis=axis, kind="stable")


def top_k(draw: Draw) -> Case:
    x = some(draw, dims=1)
    if draw(st.booleans()):  # so many that they are not all sorted
        x = np.repeat(x, 30, axis=-1)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    count = draw(st.integers(0, min(x.shape[axis], 70)))
    # From the last on the same order turned around, of which equal ones are turned around once more.
    order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return [x], [count, axis], order.take(range(count), axis)


def argument(function: Callable[..., Any]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        x = some(draw, least=1)
        axis = draw(st.none() | st.integers(-x.ndim, x.ndim - 1)) if x.ndim else None
        return [x], axis, function(x, axis=axis).astype("int64")

    return case


def along(logarithm: bool) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        x = some(draw, dims=1, least=1)
        axis = draw(st.integers(-x.ndim, x.ndim - 1))
        z = x.astype(floating(kind(x)))
        z = z - z.max(axis=axis, keepdims=True)
        total = np.exp(z).sum(axis=axis, keepdims=True)
        return [x], axis, z - np.log(total) if logarithm else np.exp(z) / total

    return case


def reshape(draw: Draw) -> Case:
    x = some(draw)
    shape = draw(st.sampled_from([[x.size], [1, x.size], [x.size, 1], list(x.shape), [*x.shape[::-1]]]))
    return [x], shape, x.reshape(shape)


def transpose(draw: Draw) -> Case:
    x = some(draw)
    axes = draw(st.permutations(range(x.ndim)))
    return [x], axes, x.transpose(axes)


def broadcast_to(draw: Draw) -> Case:
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    x = array(draw, shapes.input_shapes[0])
    return [x], list(shapes.result_shape), np.broadcast_to(x, shapes.result_shape)


def cast(draw: Draw) -> Case:
    dtype = draw(st.sampled_from(ORDER))
    if dtype in {"uint8", "int64"}:
        x = draw(
            st.sampled_from([np.array([0.0, 1.9, 200.7], "f4"), np.array([-7, 300, 2**40]), np.array([True])])
        )
    else:
        x = some(draw)
    return [x], dtype, x.astype(dtype)


def place(draw: Draw, x: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """An index as ``cut`` takes it, and as NumPy does."""
    parts: list[Any] = []
    index: list[Any] = []
    for size in x.shape[: draw(st.integers(0, x.ndim))]:
        if size and draw(st.booleans()):
            parts.append(draw(st.integers(0, size - 1)))
            index.append(parts[-1])
        else:
            chosen = draw(st.slices(size))
            index.append(chosen)
            start, stop, step = chosen.indices(size)
            parts.append([start, len(range(start, stop, step)), step])
    return parts, tuple(index)


def cut(draw: Draw) -> Case:
    x = some(draw)
    parts, index = place(draw, x)
    return [x], parts, x[index]


def put(draw: Draw) -> Case:
    x = some(draw)
    parts, index = place(draw, x)
    room = x[index].shape
    dtypes = ORDER if kind(x).startswith("float") else ORDER[:3]
    value = array(draw, draw(st.sampled_from([room, (), room[1:]])), *dtypes)
    expected = x.copy()
    expected[index] = value
    return [x, value], parts, expected


def take(draw: Draw) -> Case:
    x = some(draw, dims=1, least=1)
    rows = draw(
        hnp.arrays(
            "int64", st.sampled_from([(), (0,), (2, 2), (4,)]), elements=st.integers(-len(x), len(x) - 1)
        )
    )
    return [x, rows], None, x[rows]


def put_rows(draw: Draw) -> Case:
    x = some(draw, "float32", "float64", dims=1, least=1)
    rows = draw(
        hnp.arrays(
            "int64", st.sampled_from([(), (0,), (2, 2), (4,)]), elements=st.integers(-len(x), len(x) - 1)
        )
    )
    value = draw(st.sampled_from([array(draw, rows.shape + x.shape[1:]), array(draw, x.shape[1:])]))
    expected = x.copy()
    for at, row in np.ndenumerate(rows):  # the last one counts
        expected[row] = np.broadcast_to(value, rows.shape + x.shape[1:])[at]
    return [x, rows, value], None, expected


def add_rows(draw: Draw) -> Case:
    count = draw(st.integers(1, 4))
    where = draw(st.sampled_from([(), (0,), (2, 2), (5,)]))
    rows = draw(hnp.arrays("int64", where, elements=st.integers(-count, count - 1)))
    rest = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    values_ = array(draw, where + rest, finite=True)
    dtype = "int64" if kind(values_) in {"bool", "uint8"} else kind(values_)
    expected = np.zeros((count, *rest), dtype)
    for at, row in np.ndenumerate(rows):
        expected[row] += values_[at]
    return [rows, values_], count, expected


def gather(draw: Draw) -> Case:
    x = some(draw, dims=1, least=1)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    shape = list(x.shape)
    shape[axis] = draw(st.integers(0, 4))
    last = x.shape[axis] - 1
    indices = draw(hnp.arrays("int64", tuple(shape), elements=st.integers(-last - 1, last)))
    return [x, indices], axis, np.take_along_axis(x, indices, axis)


def nonzero(draw: Draw) -> Case:
    x = some(draw, "bool")
    return [x], int(x.sum()), np.flatnonzero(x)


def pick(draw: Draw) -> Case:
    x = some(draw, dims=2, least=1)
    x = x if x.ndim == 2 else x[0]
    columns = draw(hnp.arrays("int64", len(x), elements=st.integers(-x.shape[1], x.shape[1] - 1)))
    return (
        [x, columns],
        None,
        np.array([row[column] for row, column in zip(x, columns, strict=True)], x.dtype),
    )


def put_picked(draw: Draw) -> Case:
    count = draw(st.integers(1, 4))
    columns = draw(hnp.arrays("int64", draw(st.integers(0, 4)), elements=st.integers(-count, count - 1)))
    values_ = array(draw, columns.shape, finite=True)
    expected = np.zeros((len(columns), count), "float64" if kind(values_) == "float64" else "float32")
    for row, column in enumerate(columns):
        expected[row, column] = values_[row]
    return [columns, values_], count, expected


def one_hot(draw: Draw) -> Case:
    classes = draw(st.integers(1, 4))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    labels = draw(
        hnp.arrays(draw(st.sampled_from(["int64", "uint8"])), shape, elements=st.integers(0, classes - 1))
    )
    return [labels], classes, np.eye(classes, dtype="float32")[labels]


def concatenate(draw: Draw) -> Case:
    first = some(draw, dims=1)
    axis = draw(st.integers(-first.ndim, first.ndim - 1))
    parts = [first]
    for _ in range(draw(st.integers(0, 2))):
        shape = list(first.shape)
        shape[axis] = draw(st.integers(0, 3))
        parts.append(array(draw, tuple(shape)))
    dtype = meet(*parts)
    return parts, axis, np.concatenate([each.astype(dtype) for each in parts], axis)


def full(draw: Draw) -> Case:
    dtype = draw(st.sampled_from(ORDER))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    value = draw(values(dtype))
    return [], [dtype, list(shape), value], np.array([value] * int(np.prod(shape)), dtype).reshape(shape)


def arange(draw: Draw) -> Case:
    count = draw(st.integers(0, 20))
    return [], count, np.array(list(range(count)), "int64")


CASES: dict[str, Callable[[Draw], Case]] = {
    "neg": unary(lambda x: 0 - x),
    "abs": unary(lambda x: np.where(x < 0, 0 - x, x)),
    "sign": unary(
        lambda x: np.where(np.isnan(x), x, (x > 0).astype("i1") - (x < 0).astype("i1")).astype(x.dtype)
    ),
    "relu": unary(lambda x: np.where(x < 0, np.zeros_like(x), x)),
    "square": unary(lambda x: x * x),
    "sqrt": unary(np.sqrt, to_float=True),
    "exp": unary(np.exp, to_float=True),
    "expm1": unary(np.expm1, to_float=True),
    "log": unary(np.log, to_float=True),
    "log1p": unary(np.log1p, to_float=True),
    "sin": unary(np.sin, to_float=True),
    "cos": unary(np.cos, to_float=True),
    "tanh": unary(np.tanh, to_float=True),
    "erf": unary(scipy.special.erf, to_float=True),
    "sigmoid": unary(lambda x: 1 / (1 + np.exp(-x)), to_float=True),
    "softplus": unary(lambda x: np.logaddexp(x, x.dtype.type(0)), to_float=True),
    "add": binary(np.add),
    "sub": binary(np.subtract),
    "mul": binary(np.multiply),
    "mod": binary(np.mod),
    "floordiv": binary(np.floor_divide),
    "maximum": binary(np.maximum, numeric=False),
    "minimum": binary(np.minimum, numeric=False),
    "div": binary(np.true_divide, to_float=True),
    "pow": binary(np.power, to_float=True),
    "eq": compare(np.equal),
    "ne": compare(np.not_equal),
    "lt": compare(np.less),
    "le": compare(np.less_equal),
    "gt": compare(np.greater),
    "ge": compare(np.greater_equal),
    "and": logical(np.logical_and, 2),
    "or": logical(np.logical_or, 2),
    "not": logical(np.logical_not, 1),
    "where": where,
    "matmul": matmul,
    "sum": reduce(np.sum, "sum"),
    "mean": reduce(np.mean, "mean"),
    "max": reduce(np.max, "max"),
    "min": reduce(np.min, "min"),
    "logsumexp": reduce(logsumexp, "logsumexp"),
    "argmax": argument(np.argmax),
    "argmin": argument(np.argmin),
    "softmax": along(logarithm=False),
    "log_softmax": along(logarithm=True),
    "cumsum": cumsum,
    "argsort": argsort,
    "top_k": top_k,
    "reshape": reshape,
    "transpose": transpose,
    "broadcast_to": broadcast_to,
    "cast": cast,
    "cut": cut,
    "put": put,
    "take": take,
    "put_rows": put_rows,
    "add_rows": add_rows,
    "gather": gather,
    "nonzero": nonzero,
    "pick": pick,
    "put_picked": put_picked,
    "one_hot": one_hot,
    "concatenate": concatenate,
    "full": full,
    "arange": arange,
    **window_cases.CASES,
}


def do(machine: StepMachine, name: str, operands: list[Any], params: Any) -> Any:
    """One operation by a tape of text, as a program sends it."""
    steps: list[Any] = []
    handles: list[Any] = []
    specs: list[Any] = []
    for each in operands:
        if isinstance(each, np.ndarray):
            spec = (each.dtype.name, each.shape)
            steps.append(["create", len(steps) + 1, [], [*spec, b64encode(each.tobytes()).decode()]])
            handles.append(len(steps))
        else:
            spec = ("bool" if isinstance(each, bool) else kind(each), ())
            handles.append([each])
        specs.append(spec)
    dtype, shape = infer(name, specs, params)
    steps += [[name, 99, handles, params], ["read", None, [99], None]]
    (answer,) = json.loads(machine.run(json.dumps(steps)))
    return np.frombuffer(b64decode(answer), {"float": "float64", "int": "int64"}.get(dtype, dtype)).reshape(
        shape
    )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_operation(name: str, data: st.DataObject) -> None:
    with np.errstate(all="ignore"):
        operands, params, expected = CASES[name](data.draw)
    for machine in (NumpyMachine(), PythonMachine()):
        result = do(machine, name, operands, params)
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        if result.dtype.kind == "f":
            tolerance = 1e-6 if result.dtype == "float32" else 1e-12
            np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(result, expected)


def test_every_operation_is_complete() -> None:
    """A case here, a kernel of each machine, a gradient or the statement that there is none, and documentation."""
    assert set(CASES) | {"random", "draw"} == set(OPERATIONS) == set(KERNELS)
    for name, operation in OPERATIONS.items():
        assert operation.name == name
        assert operation.doc
        assert callable(operation.infer)
        assert callable(operation.kernel)
        assert operation.gradient is None or callable(operation.gradient)


@pytest.mark.parametrize("kind_", ["normal", "uniform", "permutation", "key"])
@pytest.mark.parametrize("by_key", [False, True])
def test_random(machine: StepMachine, kind_: str, by_key: bool) -> None:
    """The same for the same seed, and other numbers for one that differs anywhere."""
    shape = [2000] if kind_ == "permutation" else [40, 50]

    def drawn(*seed: int) -> Any:
        if by_key:
            return do(type(machine)(), "draw", [np.array(seed[:2]), seed[2]], [kind_, shape])
        return do(type(machine)(), "random", [], [kind_, shape, list(seed)])

    one, *others = (drawn(*seed) for seed in ((5, 1, 0), (5, 1, 1), (5, 2, 0), (6, 1, 0), (0, 1, 5)))
    np.testing.assert_array_equal(one, drawn(5, 1, 0))
    assert not any(np.array_equal(one, other) for other in others)
    if kind_ == "permutation":
        assert sorted(one.tolist()) == list(range(2000))
    elif kind_ == "uniform":
        assert 0 <= one.min() < 0.01
        assert 0.99 < one.max() < 1
    elif kind_ == "key":
        assert 0 <= one.min() < 2**58
        assert 2**62 + 2**61 < one.max() < 2**63
    else:
        assert abs(one.mean()) < 0.1
        assert 0.9 < one.std() < 1.1


def test_integers_wrap(machine: StepMachine) -> None:
    """As two's complement does, on every machine."""
    most, least = np.array([2**63 - 1]), np.array([-(2**63)])
    assert do(type(machine)(), "add", [most, 1], None).tolist() == [-(2**63)]
    assert do(type(machine)(), "neg", [least], None).tolist() == [-(2**63)]
    assert do(type(machine)(), "mul", [most, most], None).tolist() == [1]
    assert do(type(machine)(), "square", [most], None).tolist() == [1]
    assert do(type(machine)(), "sum", [np.array([2**62] * 3)], [None, False]).tolist() == 3 * 2**62 - 2**64
    small = np.array([200, 100], "uint8")
    assert do(type(machine)(), "add", [small, small], None).tolist() == [144, 200]
    assert do(type(machine)(), "neg", [small], None).tolist() == [56, 156]
    assert do(type(machine)(), "cast", [np.array([-1, 257])], "uint8").tolist() == [255, 1]
    assert do(type(machine)(), "add", [small, 100], None).tolist() == [
        300,
        200,
    ]  # beside a number it is int64
    assert do(type(machine)(), "add", [2**62, 2**62], None).tolist() == -(2**63)


def test_numbers_beside_float32_are_float32(machine: StepMachine) -> None:
    x = np.array([0.1, 1e38], "float32")
    assert do(type(machine)(), "eq", [x, 0.1], None).tolist() == [True, False]
    assert do(type(machine)(), "mul", [x, 1e-60], None).tolist() == [0.0, 0.0]
    assert do(type(machine)(), "mul", [x, 1e300], None).tolist() == [float("inf")] * 2


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30, 1e30])
def test_floats_that_are_no_integers(machine: StepMachine, dtype: str, value: float) -> None:
    """What a processor makes of them differs, so it is an error."""
    with pytest.raises(TensorError, match=f"cast: .*does not fit {dtype}"):
        do(machine, "cast", [np.array([0.5, value])], dtype)


@pytest.mark.parametrize(
    ("name", "operands", "params"),
    [
        ("add", [np.zeros(2), np.zeros(3)], None),
        ("matmul", [np.zeros((2, 3)), np.zeros((2, 3))], None),
        ("matmul", [np.zeros(()), np.zeros(3)], None),
        ("matmul", [np.zeros(2, "bool"), np.zeros(2, "bool")], None),
        ("sum", [np.zeros(2)], [[0, 0], False]),
        ("sum", [np.zeros(2)], [[1], False]),
        ("sum", [np.zeros(2)], [None, "yes"]),
        ("max", [np.zeros((0, 2))], [[0], False]),
        ("logsumexp", [np.zeros((0, 2))], [[0], False]),
        ("argmax", [np.zeros(0)], None),
        ("cumsum", [np.zeros(2)], 1),
        ("cumsum", [np.zeros(())], 0),
        ("argsort", [np.zeros(2)], None),
        ("top_k", [np.zeros(2)], [3, 0]),
        ("top_k", [np.zeros(2)], [-1, 0]),
        ("top_k", [np.zeros(2)], [1, 1]),
        ("top_k", [np.zeros(2)], [1.5, 0]),
        ("softmax", [np.zeros((2, 0))], 1),
        ("reshape", [np.zeros(4)], [3]),
        ("reshape", [np.zeros(4)], [-2, -2]),
        ("transpose", [np.zeros((2, 2))], [0, 0]),
        ("broadcast_to", [np.zeros(3)], [2]),
        ("cut", [np.zeros(3)], [3]),
        ("cut", [np.zeros(3)], [[0, 4, 1]]),
        ("cut", [np.zeros(3)], [[0, 2, 0]]),
        ("cut", [np.zeros(3)], [[2, 4, -1]]),
        ("cut", [np.zeros(3)], [[[0], 10**9, [0]]]),
        ("cut", [np.zeros(3)], [0, 0]),
        ("put", [np.zeros(3), np.zeros(2)], [[0, 3, 1]]),
        ("put", [np.zeros(3, "int64"), 0.5], [0]),
        ("take", [np.zeros(3), np.zeros(2, "bool")], None),
        ("take", [np.zeros(3), np.array([3])], None),
        ("take", [np.zeros(3), np.array([-4])], None),
        ("put_rows", [np.zeros(3), np.array([3]), 1.0], None),
        ("add_rows", [np.array([2]), np.zeros(1)], 2),
        ("add_rows", [np.array([-3]), np.zeros(1)], 2),
        ("add_rows", [np.array([0]), np.zeros(1)], 0),
        ("add_rows", [np.array([0, 1]), np.zeros((1, 2))], 2),
        ("add_rows", [np.array([0]), np.zeros(1)], -1),
        ("add_rows", [np.zeros(1), np.zeros(1)], 2),
        ("gather", [np.zeros((2, 2)), np.array([[0, 2]])], 0),
        ("gather", [np.zeros((2, 2)), np.array([[0, -3]])], 0),
        ("gather", [np.zeros((2, 2)), np.array([[0, 1]])], 1),
        ("gather", [np.zeros((2, 2)), np.array([0, 1])], 0),
        ("gather", [np.zeros((2, 2)), np.zeros((2, 2), "bool")], 0),
        ("nonzero", [np.array([True, False])], 2),
        ("nonzero", [np.array([True, False])], -1),
        ("nonzero", [np.zeros(2)], 0),
        ("pick", [np.zeros((2, 2)), np.array([0, 2])], None),
        ("pick", [np.zeros((2, 2)), np.array([0])], None),
        ("put_picked", [np.array([2]), np.zeros(1)], 2),
        ("put_picked", [np.array([0]), np.zeros((1, 2))], 2),
        ("put_picked", [np.zeros(1), np.zeros(1)], 2),
        ("one_hot", [np.array([3])], 3),
        ("one_hot", [np.array([-1])], 3),
        ("concatenate", [], 0),
        ("concatenate", [np.zeros(2), np.zeros((2, 2))], 0),
        ("where", [np.zeros(2), 1, 2], None),
        ("and", [np.zeros(2), np.zeros(2)], None),
        ("full", [], ["uint8", [2], 256]),
        ("full", [], ["int64", [2], 0.5]),
        ("full", [], ["float32", [2], "0"]),
        ("full", [], ["float32", [2], [1, 2]]),
        ("full", [], ["complex64", [2], 0]),
        ("full", [], ["bool", [1] * 33, 0]),
        ("full", [], ["bool", [2**40, 2], 0]),
        ("arange", [], -1),
        ("arange", [], 1.5),
        ("random", [], ["normal", [2], [-1]]),
        ("random", [], ["lognormal", [2], [1]]),
        ("random", [], ["permutation", [2, 2], [1]]),
        ("draw", [np.array([1, 2, 3]), 0], ["normal", [2]]),
        ("draw", [np.array([1.0, 2.0]), 0], ["normal", [2]]),
        ("draw", [np.array([1, 2]), 0.5], ["normal", [2]]),
        ("draw", [np.array([1, 2]), np.array([0])], ["normal", [2]]),
        ("draw", [np.array([1, 2]), 0], ["lognormal", [2]]),
        ("draw", [np.array([1, 2]), 0], ["permutation", [2, 2]]),
        ("add", [np.zeros(2), 2**63], None),
    ],
    ids=str,
)
def test_what_cannot_be_done(machine: StepMachine, name: str, operands: list[Any], params: Any) -> None:
    with pytest.raises(TensorError):
        do(machine, name, operands, params)


@pytest.mark.parametrize("x", [74, np.uint8(74), np.int64(2**24 + 1), np.float32(74)])
@pytest.mark.parametrize("name", ["mod", "floordiv", "div", "add"])
def test_a_number_that_makes_float32_of_integers_is_float32_itself(name: str, x: Any) -> None:
    operands = [np.asarray(x), 0.1]
    expected, result = (do(machine, name, operands, None) for machine in (NumpyMachine(), PythonMachine()))
    assert result.dtype == expected.dtype == "float32"
    np.testing.assert_array_equal(result, expected)
