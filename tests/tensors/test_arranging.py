"""Functions that arrange, sort and sum over axes by their letters, against NumPy's of the same name."""

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.python_machine import PythonMachine

MACHINES = pytest.mark.parametrize("machine_", [NumpyMachine, PythonMachine])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)
Draw = Callable[..., Any]


def an_axis(draw: Draw, x: Any) -> int:
    return int(draw(st.integers(-x.ndim, x.ndim - 1)))


def axes(draw: Draw, x: Any) -> Any:
    several = st.lists(
        st.integers(0, x.ndim - 1).map(lambda axis: axis - x.ndim * (axis % 2)),
        unique_by=lambda axis: axis % x.ndim,
    )
    return draw(st.integers(-x.ndim, x.ndim - 1) | several.map(tuple))


def pad(draw: Draw, x: Any) -> Any:
    mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
    most = min(x.shape) - 1 if mode == "reflect" else 3
    count = st.integers(0, most)
    width = draw(
        count | st.tuples(count, count) | st.tuples(*[st.tuples(count, count) for _ in range(x.ndim)])
    )
    if x.ndim == 2 and isinstance(width, tuple) and isinstance(width[0], int):
        width = ((width[0], width[1]),) * 2  # a pair for all axes, in both
    value = draw(st.integers(0, 1)) if mode == "constant" else 0
    more = {"constant_values": value} if mode == "constant" else {}
    return pt.pad(pt.array(x), width, mode, value), np.pad(x, width, mode, **more)


def split(draw: Draw, x: Any) -> Any:
    axis = an_axis(draw, x)
    sections = draw(
        st.sampled_from([n for n in (1, 2, 3) if x.shape[axis] % n == 0])
        | st.lists(st.integers(0, 4), max_size=3).map(sorted)
    )
    found, expected = pt.split(pt.array(x), sections, axis), np.split(x, sections, axis)
    assert [each.shape for each in found] == [each.shape for each in expected]
    return pt.concatenate(found, axis), np.concatenate(expected, axis)


def moveaxis(draw: Draw, x: Any) -> Any:
    source = draw(st.lists(st.integers(0, x.ndim - 1), unique=True))
    there = draw(st.permutations(range(x.ndim)))[: len(source)]
    return pt.moveaxis(pt.array(x), source, there), np.moveaxis(x, source, there)


def roll(draw: Draw, x: Any) -> Any:
    shift, axis = draw(st.integers(-4, 4)), draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    if axis is None:
        return pt.roll(pt.array(x), shift), np.roll(x, shift)
    both = (shift, 1), (axis, 0)
    return pt.roll(pt.roll(pt.array(x), *both), shift, axis), np.roll(np.roll(x, *both), shift, axis)


def top_k(draw: Draw, x: Any) -> Any:
    axis = an_axis(draw, x)
    count = draw(st.integers(0, x.shape[axis]))
    found, places = pt.top_k(pt.array(x), count, axis)
    np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(places), axis), np.asarray(found))
    return found, np.flip(np.sort(x, axis), axis).take(range(count), axis)


def both(function: str, *arguments: Any, **named: Any) -> Any:
    return lambda _, x: (
        getattr(pt, function)(pt.array(x), *arguments, **named),
        getattr(np, function)(x, *arguments, **named),
    )


def with_axis(function: str, pick: Callable[[Draw, Any], Any]) -> Any:
    return lambda draw, x: both(function, pick(draw, x))(draw, x)


CASES: dict[str, Callable[[Draw, Any], tuple[Any, Any]]] = {
    "expand_dims": lambda draw, x: both("expand_dims", draw(st.sampled_from([0, -1, (0, 2), (-1, 1)])))(
        draw, x
    ),
    "swapaxes": lambda draw, x: both("swapaxes", an_axis(draw, x), an_axis(draw, x))(draw, x),
    "moveaxis": moveaxis,
    "flip": with_axis("flip", axes),
    "flip all": both("flip"),
    "roll": roll,
    "tile": lambda draw, x: both("tile", draw(st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=4)))(
        draw, x
    ),
    "repeat": lambda draw, x: both("repeat", draw(st.integers(0, 3)), an_axis(draw, x))(draw, x),
    "repeat all": both("repeat", 2),
    "split": split,
    "pad": pad,
    "reshape": both("reshape", -1),
    "transpose": both("transpose"),
    "squeeze": both("squeeze"),
    "cumsum": with_axis("cumsum", an_axis),
    "cumsum of all": both("cumsum"),
    "sort": with_axis("sort", an_axis),
    "sort descending": lambda draw, x: (
        pt.sort(pt.array(x), axis := an_axis(draw, x), descending=True),
        np.flip(np.sort(x, axis), axis),
    ),
    "argsort": lambda draw, x: (
        pt.argsort(pt.array(x), axis := an_axis(draw, x)),
        np.argsort(x, axis, kind="stable"),
    ),
    "argsort descending": lambda draw, x: (
        pt.argsort(pt.array(x), axis := an_axis(draw, x), descending=True),
        np.argsort(-x.astype("float64"), axis, kind="stable"),
    ),
    "top_k": top_k,
}


@MACHINES
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30)
@given(data=st.data())
def test_as_in_numpy(machine_: type[StepMachine], name: str, data: st.DataObject) -> None:
    session.use(machine_())
    shape = data.draw(SHAPES)
    dtype = data.draw(st.sampled_from(["float32", "int64", "uint8", "bool"]))
    x = data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, 1 if dtype == "bool" else 5)))
    found, expected = CASES[name](data.draw, x)
    assert found.shape == expected.shape
    if name.startswith("cumsum"):
        expected = expected.astype(found.dtype)
    assert found.dtype == expected.dtype.name
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_nan_is_the_largest(machine: StepMachine) -> None:
    x = pt.array([1.0, float("nan"), 3.0, float("inf")])
    assert pt.argsort(x).tolist() == [0, 2, 3, 1]
    assert pt.argsort(x, descending=True).tolist() == [1, 3, 2, 0]
    assert pt.top_k(x, 3)[1].tolist() == [1, 3, 2]
    many = pt.concatenate([pt.zeros(100), x, x])
    assert pt.top_k(many, 1)[1].tolist() == [101]
    assert pt.top_k(many, 5)[1].tolist() == [101, 105, 103, 107, 102]


LETTERS = dict(zip("abcde", (2, 3, 1, 2, 4), strict=True))


@MACHINES
@settings(max_examples=60)
@given(data=st.data())
def test_einsum(machine_: type[StepMachine], data: st.DataObject) -> None:
    """Any letters of two or more operands, with an ellipsis or without, told the result's or not."""
    session.use(machine_())
    count = data.draw(st.integers(1, 3))
    parts, arrays = [], []
    ellipsis = data.draw(st.booleans())
    for at in range(count):
        letters = data.draw(st.lists(st.sampled_from(sorted(LETTERS)), unique=True, max_size=3))
        sizes = [LETTERS[letter] for letter in letters]
        where = data.draw(st.integers(0, len(letters)))
        if ellipsis:
            hidden = data.draw(st.sampled_from([(), (2,), (1,), (3, 2), (3, 1)]))
            letters.insert(where, "...")
            sizes[where:where] = hidden
        parts.append("".join(letters))
        arrays.append((np.arange(np.prod(sizes, dtype=int)).reshape(sizes) % 7 - at).astype("float64"))
    subscripts = ",".join(parts)
    known = sorted({letter for part in parts for letter in part.replace("...", "")})
    if data.draw(st.booleans()):
        chosen = data.draw(st.permutations(known))[: data.draw(st.integers(0, len(known)))]
        if ellipsis:
            chosen = [*chosen[:1], "...", *chosen[1:]]
        subscripts += "->" + "".join(chosen)
    expected = np.einsum(subscripts, *arrays)
    found = pt.einsum(subscripts, *[pt.array(each) for each in arrays])
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def test_einsum_is_one_product() -> None:
    """Of what matrices there are, nothing is added."""
    tape = session.current().main
    a, b = pt.ones((2, 3, 4, 5)), pt.ones((2, 3, 6, 5))
    tape.flush()
    pt.einsum("bhqd,bhkd->bhqk", a, b)
    assert [step[0] for step in tape.steps] == ["transpose", "matmul"]
    tape.flush()
    pt.einsum("i,j->ij", a[0, 0, 0], b[0, 0, 0])
    assert "matmul" not in [step[0] for step in tape.steps]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: pt.einsum("ij,jk", x), "for 2 operands, got 1"),
        (lambda x: pt.einsum("ii->i", x), "a letter twice"),
        (lambda x: pt.einsum("ij->k", x), "a letter that no operand has"),
        (lambda x: pt.einsum("ij->ii", x), "a letter twice"),
        (lambda x: pt.einsum("i->i", x), "does not name 2 axes"),
        (lambda x: pt.einsum("...i->i", x), "does not name"),
        (lambda x: pt.einsum("i1->i", x), "something else than letters"),
        (lambda x: pt.einsum("ij,ij", x, x.T), "has the sizes 2 and 3"),
        (lambda x: pt.split(x, 2, 1), "not divided into 2 parts"),
        (lambda x: pt.pad(x, (1, 2, 3)), "before and behind each of 2 axes"),
        (lambda x: pt.pad(x, -1), "before and behind"),
        (lambda x: pt.pad(x, 2, "reflect"), "has no 2 elements to be mirrored"),
        (lambda x: pt.pad(x[:0], 1, "edge"), "has no edge"),
        (
            lambda x: pt.pad(x, 1, "wrap"),  # type: ignore[arg-type]
            "'constant', 'edge' or 'reflect'",
        ),
        (lambda x: pt.flip(x, (0, -2)), "an axis twice"),
        (lambda x: pt.roll(x, (1, 2), 0), "2 shifts for 1 axes"),
        (lambda x: pt.moveaxis(x, (0, 1), 0), "one destination"),
        (lambda x: pt.top_k(x, 4), "no 4 largest of 3"),
        (lambda x: pt.cumsum(x, 2), "no axis 2"),
    ],
)
def test_what_is_refused(function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        function(pt.ones((2, 3)))


def test_orders_of_axes(machine: StepMachine) -> None:
    """Every way to name two axes of three."""
    x = np.arange(24).reshape(2, 3, 4)
    for one, other in itertools.permutations(range(-3, 3), 2):
        if one % 3 != other % 3:
            expected = np.moveaxis(x, (one, other), (other, one))
            np.testing.assert_array_equal(
                np.asarray(pt.moveaxis(pt.array(x), (one, other), (other, one))), expected
            )
