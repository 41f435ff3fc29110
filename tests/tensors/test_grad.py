"""Gradients against finite differences, of every operation that has one, as they are and traced."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors.array import record
from propeller.tensors.machine import StepMachine
from propeller.tensors.operations import OPERATIONS
from support import window_cases

ROWS, COLUMNS = np.array([0, 2, 0, -1]), np.array([1, -1, 0])
MASK = np.array([True, False, True])


def ints(values: Any) -> Any:
    return pt.array(np.asarray(values).tolist())


CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "add": (lambda a, b: a + b, [(2, 3), (3,)]),
    "add number": (lambda a: 2.0 + a + 1, [(2, 3)]),
    "sub": (lambda a, b: a - b, [(3,), (2, 1)]),
    "mul": (lambda a, b: a * b * 3.0, [(2, 3), (1, 3)]),
    "mul same": (lambda a: a * a * a, [(2, 3)]),
    "div": (lambda a, b: a / b + 1.0 / b, [(2, 3), (2, 1)]),
    "pow": (lambda a: a**3 + a**0.5 + a**1 + a**0 + a**-2, [(2, 3)]),
    "abs": (lambda a: abs(a - 1.2), [(5,)]),
    "square": (lambda a: pt.square(a) + a**2, [(3,)]),
    "sign": (lambda a: pt.sign(a - 1.2) * a, [(5,)]),
    "relu": (lambda a: pt.relu(a - 1.2), [(6,)]),
    "maximum": (lambda a, b: pt.maximum(a, b) + pt.maximum(1.2, a), [(2, 3), (3,)]),
    "minimum": (pt.minimum, [(2, 3), ()]),
    "where": (lambda a, b: pt.where(ints(MASK), a, b) + pt.where(a > 1.2, a, 0.0), [(2, 3), (3,)]),
    "matmul": (lambda a, b: a @ b, [(2, 3), (3, 4)]),
    "matmul vectors": (lambda a, b: a @ b, [(3,), (3,)]),
    "matmul left vector": (lambda a, b: a @ b, [(3,), (2, 3, 4)]),
    "matmul right vector": (lambda a, b: a @ b, [(2, 4, 3), (3,)]),
    "matmul of a stack and a matrix": (lambda a, b: (a * a) @ b, [(2, 2, 2, 3), (3, 2)]),
    "matmul stacks": (lambda a, b: a @ b, [(2, 1, 2, 3), (3, 3, 2)]),
    "sum": (lambda a: a.sum(0) * 2.0 + a.sum(), [(2, 3)]),
    "sum kept": (lambda a: a * a.sum(-1, keepdims=True), [(2, 3)]),
    "mean": (lambda a: a.mean((0, 1)) + a.mean(), [(2, 3, 2)]),
    "mean kept": (lambda a: a * a.mean(0, keepdims=True), [(2, 3)]),
    "max": (lambda a: a.max(1) * 2.0 + a.max(), [(2, 3)]),
    "min": (lambda a: a * a.min(-1, keepdims=True), [(2, 3)]),
    "logsumexp": (lambda a: pt.logsumexp(a, axis=0) * 2.0 + pt.logsumexp(a), [(2, 3)]),
    "logsumexp kept": (lambda a: a * pt.logsumexp(a, axis=-1, keepdims=True), [(2, 3)]),
    "softmax": (lambda a: pt.softmax(a) + pt.softmax(a, axis=0), [(2, 3)]),
    "log_softmax": (lambda a: pt.log_softmax(a, axis=0), [(2, 3)]),
    "reshape": (lambda a: a.reshape(3, -1) @ pt.arange(2).astype("float64"), [(2, 3)]),
    "broadcast_to": (lambda a: pt.broadcast_to(a, (2, 2, 3)), [(2, 1)]),
    "transpose": (lambda a: a.transpose(2, 0, 1) * a.T.transpose(0, 2, 1), [(2, 3, 2)]),
    "cast": (lambda a: a.astype("float64").copy(), [(3,)]),
    "cut": (lambda a: a[1] * a[0, ::-1] + a[:, 1:][0].sum() + a[..., 0].sum(), [(2, 3)]),
    "put": (None, [(2, 3), (3,)]),  # type: ignore[dict-item]
    "take": (lambda a: a[ints(ROWS)] * pt.arange(4).reshape(4, 1), [(3, 2)]),
    "take one": (lambda a: a[ints(ROWS)], [(3,)]),
    "take none": (lambda a: a[pt.zeros((0,), "int64")].sum() + a.sum(), [(3, 2)]),
    "put_rows": (lambda a, b: record("put_rows", a, ints(ROWS), b), [(3, 2), (4, 2)]),
    "put_rows of one value": (lambda a, b: record("put_rows", a, ints(ROWS), b), [(3, 2), (2,)]),
    "add_rows": (lambda a: pt.add_rows(a * a, ints(ROWS), 4), [(4, 2)]),
    "add_rows at places": (lambda a: pt.add_rows(a, ints(ROWS.reshape(2, 2)), 3), [(2, 2)]),
    "gather": (lambda a: pt.take_along_axis(a * a, ints([[0, 2, -1], [0, 0, 1]]), 1), [(2, 3)]),
    "gather in the middle": (
        lambda a: pt.take_along_axis(a, ints([[[0, 1], [-1, 0], [1, 1]]]), 1),
        [(2, 2, 2)],
    ),
    "embedding": (lambda a: pt.embedding(a, ints([[0, 1], [1, 1]])) * pt.arange(2), [(3, 2)]),
    "pick": (lambda a: a[range(3), ints(COLUMNS)], [(3, 4)]),
    "put_picked": (lambda a: record("put_picked", ints(COLUMNS), a * a, params=4), [(3,)]),
    "cumsum": (lambda a: pt.cumsum(a * a, 1) + pt.cumsum(a).reshape(2, 3), [(2, 3)]),
    "sort": (lambda a: pt.sort(a, 0) * pt.sort(-a, descending=True), [(3, 2)]),
    "top_k": (lambda a: pt.top_k(a * a, 2)[0], [(2, 4)]),
    "pad": (lambda a: pt.pad(a, ((1, 0), (0, 2))) + pt.pad(a * a, 1, "edge")[:-1], [(2, 3)]),
    "mirrored": (lambda a: pt.pad(a, (2, 1), "reflect"), [(3,)]),
    "rolled": (lambda a: pt.roll(a, 1) * pt.flip(a) + pt.tile(a, (1, 2))[:, 2:5], [(2, 3)]),
    "repeated": (lambda a: pt.repeat(a * a, 2, 1) + pt.repeat(a, 2).reshape(2, 6), [(2, 3)]),
    "split": (lambda a: pt.split(a, 2)[1] * pt.split(a, [1], 1)[0][:2], [(4, 3)]),
    "layer_norm": (lambda a, b: pt.layer_norm(a, b, b * b), [(2, 4), (4,)]),
    "group_norm": (lambda a, b: pt.group_norm(a, 2, b, b * 2.0), [(2, 4, 2), (4,)]),
    "batch_norm": (lambda a, b: sum(each.sum() for each in pt.batch_norm(a * a, b, b)), [(3, 2, 2), (2,)]),
    "batch_norm of given": (
        lambda a, b: pt.batch_norm(a, b, b, mean=b * 0.5, var=b * b)[0],
        [(3, 2, 2), (2,)],
    ),
    "attention": (
        lambda a, b: (
            pt.scaled_dot_product_attention(a, b * b, b, causal=True)
            + pt.scaled_dot_product_attention(a, a[:, :1], b[:, :1], mask=pt.array([[True], [False], [True]]))
        ),
        [(2, 3, 2), (2, 3, 2)],
    ),
    "einsum": (
        lambda a, b: pt.einsum("bij,bjk->ikb", a, b) * pt.einsum("i...,...j->j...", a[0], b[0])[:, 0, None],
        [(2, 2, 3), (2, 3, 2)],
    ),
    "concatenate": (lambda a, b: pt.concatenate([a, b, a], axis=-1), [(2, 1), (2, 3)]),
    "stack": (lambda a, b: pt.stack([a, b, a * b]), [(3,), (3,)]),
    "constants": (
        lambda a: a * pt.one_hot(pt.arange(3), 3) + pt.full(3, 2.0, "float64") + pt.zeros(3),
        [(3,)],
    ),
    **window_cases.GRADIENTS,
    "deep": (lambda a, b: pt.softmax(pt.tanh(a @ b) @ b.T) * a, [(2, 3), (3, 3)]),
}
# An operation that needs no more than arrays of one shape needs no case of its own.
CASES |= {
    name: (partial(record, name), [(2, 3)] * operation.operands)
    for name, operation in OPERATIONS.items()
    if operation.gradient and operation.operands and not operation.params and name not in CASES
}


def put(a: Any, b: Any) -> Any:
    """Nothing records ``put`` where a gradient is computed, but the gradient of an index: so twice."""
    return pt.grad(lambda x, y: (x[1] * x[1] * y).sum())(a, b)[1] * b


def apply(name: str, arrays: list[Any]) -> Any:
    function = put if name == "put" else CASES[name][0]
    result = function(*arrays)
    weights = pt.sqrt(pt.arange(result.size).astype("float64") + 1).reshape(result.shape)
    return (result * weights).sum()


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradient(machine: StepMachine, name: str, traced: bool) -> None:
    source = np.random.default_rng(3)
    given = [
        source.permutation(int(np.prod(shape))).reshape(shape) * 0.21 + 0.3 + 0.05 * at
        for at, shape in enumerate(CASES[name][1])
    ]
    both = pt.value_and_grad(lambda arrays: apply(name, arrays))
    both = pt.jit(both) if traced else both
    value, gradients = both([pt.array(each.tolist(), "float64") for each in given])
    again = value.item()
    for which, (x, gradient) in enumerate(zip(given, gradients, strict=True)):
        assert gradient.shape == x.shape
        assert gradient.dtype == "float64"
        found = np.array(gradient.tolist())
        for at in np.ndindex(x.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [np.array(each) for each in given]
                moved[which][at] += step
                values.append(apply(name, [pt.array(each.tolist(), "float64") for each in moved]).item())
            assert found[at] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6)
    assert apply(name, [pt.array(each.tolist(), "float64") for each in given]).item() == pytest.approx(again)


def test_every_gradient_is_tested() -> None:
    assert {name for name, operation in OPERATIONS.items() if operation.gradient} <= set(CASES)


class Layer(NamedTuple):
    w: Any
    b: Any


def test_form_is_the_first_arguments(machine: StepMachine) -> None:
    """Unused parameters have zeros, and every gradient the parameter's dtype."""
    model = {"layer": Layer(pt.ones((2, 2)), pt.zeros(2, "float64")), "rest": [pt.ones(3), (pt.arange(2),)]}
    (value, extra), found = pt.value_and_grad(
        lambda m, x: ((m["layer"].w @ x + m["layer"].b).sum(), "extra")
    )(model, pt.array([2.0, 3.0]))
    assert (value.item(), extra) == (10.0, "extra")
    assert found["layer"].w.tolist() == [[2.0, 3.0], [2.0, 3.0]]
    assert (found["layer"].b.dtype, found["layer"].b.tolist()) == ("float64", [1.0, 1.0])
    assert found["rest"][0].tolist() == [0.0] * 3
    assert found["rest"][1][0].tolist() == [0, 0]


def test_of_a_traced_function(machine: StepMachine) -> None:
    """A replay would hide its operations from the gradient."""
    square = pt.jit(lambda x: (x * x).sum())
    x = pt.array([1.0, 2.0])
    for _ in range(2):
        square(x)
        assert pt.grad(square)(x).tolist() == [2.0, 4.0]


def test_of_a_gradient(machine: StepMachine) -> None:
    cube = pt.grad(lambda x: (x**3).sum())
    assert pt.grad(lambda x: cube(x).sum())(pt.array([2.0, 3.0])).tolist() == [12.0, 18.0]


def test_of_a_traced_power(machine: StepMachine) -> None:
    found = pt.jit(pt.grad(lambda x, power: (x**power).sum()))(pt.array([2.0, 3.0]), 3.0)
    assert found.tolist() == pytest.approx([12.0, 27.0])


def test_ties_share(machine: StepMachine) -> None:
    assert pt.grad(lambda x: x.max())(pt.array([1.0, 3.0, 3.0])).tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: (x ** pt.ones(2)).sum(), "by its base only"),
        (lambda x: x * 2, r"a gradient is of one number; .* returned \[2\]"),
        (lambda x: 3.0, "returned float"),
        (lambda x: (x % 2.0).sum(), "mod has no gradient"),
    ],
)
def test_what_has_no_gradient(machine: StepMachine, function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        pt.grad(function)(pt.ones(2))


def test_arrays_from_outside_are_not_changed(machine: StepMachine) -> None:
    """The gradient is by what they were."""
    x, other = pt.ones(2), pt.ones(2)

    def changes(kept: Any) -> Any:
        def function(x: Any) -> Any:
            array = x if kept is None else kept
            array += 1
            return (x * 2).sum()

        return function

    for kept in (None, other):
        with pytest.raises(TensorError, match="from outside must not be changed in place"):
            pt.grad(changes(kept))(x)
    x += 1  # and that is over with the error
    assert (x.tolist(), other.tolist()) == ([2.0, 2.0], [1.0, 1.0])


def in_place(x: Any, y: Any) -> Any:
    """Changes of arrays that were made here, whose earlier values are used before and afterwards."""
    a = x * 2.0
    before = a * a
    same, a_view = a, a[0]
    a += y
    a *= a
    a[1] = y[0] * x[1]
    a[a > 3.0] = x.sum()
    b = before + same * a_view
    b[[0, 2, 0]] = y * x
    b[[True, False, True]] = x[:2] * y[:2]
    return b * a


def not_in_place(x: Any, y: Any) -> Any:
    """The same with new arrays."""
    a = x * 2.0
    before, a_view = a * a, a[0]
    a = (a + y) * (a + y)
    second = ints([False, True, False])
    a = pt.where(second, y[0] * x[1], a)
    a = pt.where(a > 3.0, x.sum(), a)
    b = before + a * a_view
    b = pt.stack([y[2] * x[2], b[1], y[1] * x[1]])
    return pt.stack([x[0] * y[0], b[1], x[1] * y[1]]) * a


@pytest.mark.parametrize("traced", [False, True])
def test_own_arrays_are_changed_in_place(machine: StepMachine, traced: bool) -> None:
    """Their gradient is that of the same with new arrays, and so is the gradient's gradient."""

    def everything(function: Any) -> Any:
        def slope(x: Any) -> Any:
            return pt.grad(lambda x: (function(x, y) * weights).sum())(x)

        return (
            pt.value_and_grad(lambda x: function(x, y).sum())(x),
            pt.grad(lambda x: pt.square(slope(x)).sum())(x),
        )

    x, y = pt.array([0.4, -0.7, 1.3], "float64"), pt.array([1.1, 0.6, -0.2], "float64")
    weights = pt.array([1.0, 0.3, -2.0], "float64")
    (value, slope), second = (pt.jit(everything) if traced else everything)(in_place)
    (other, expected), another = everything(not_in_place)
    assert value.item() == pytest.approx(other.item())
    assert slope.tolist() == pytest.approx(expected.tolist())
    assert second.tolist() == pytest.approx(another.tolist())


def test_what_a_scan_used_is_not_changed(machine: StepMachine) -> None:
    def function(x: Any) -> Any:
        start = x * 2.0
        h, _ = pt.scan(lambda h, _: (h * h, None), start, length=2)
        start += 1.0
        return h.sum()

    with pytest.raises(TensorError, match=r"a scan .* x = x \+"):
        pt.grad(function)(pt.ones(2))


def test_by_a_number(machine: StepMachine) -> None:
    with pytest.raises(TensorError, match="a gradient is by arrays; the first argument holds a float"):
        pt.grad(lambda x: pt.ones(()) * x)(2.0)
