"""``scan`` against the loop that it stands for: values and gradients, as they are and traced; and what it refuses."""

from collections.abc import Callable
from typing import Any, NamedTuple

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

Cell = Callable[[Any, Any], tuple[Any, Any]]


def loop(cell: Cell, carry: Any, xs: Any) -> tuple[Any, Any]:
    kept = []
    for x in xs:
        carry, y = cell(carry, x)
        kept.append(y)
    return carry, pt.stack(kept)


def wave(*shape: int) -> Any:
    count = int(np.prod(shape))
    return pt.array((np.sin(np.arange(count) * 1.7) * 0.8).reshape(shape))


MAKERS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: pt.tanh(a) - b,
    lambda a, b: pt.sigmoid(a * 2.0),
    lambda a, b: (a @ b.reshape(3, 1)) * pt.ones(3, "float64"),
    lambda a, b: pt.concatenate([a[:, 1:], b[:, :1]], axis=1),
    lambda a, b: a.sum(0, keepdims=True) + b * 0.5,
    lambda a, b: pt.where(a > b, a, 0.25),
    lambda a, b: a.T.T,
    lambda a, b: a,
]


@pytest.mark.parametrize("machine_", [NumpyMachine, PythonMachine])
@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(range(len(MAKERS))), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    ends=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    count=st.integers(1, 4),
    of_carry=st.booleans(),
)
def test_any_cell_is_its_loop(
    machine_: type[StepMachine], steps: Any, ends: Any, count: int, of_carry: bool
) -> None:
    """Made of operations on two arrays of the carry, a row, weights, and a constant, ends in any of what it made."""
    session.use(machine_())

    def run(turn: Any, arrays: Any) -> Any:
        weights, first, second, xs = arrays

        def cell(carry: Any, x: Any) -> Any:
            held = [*carry, x, weights, wave(1, 3)]
            for kind, at, other in steps:
                a, b = held[at % len(held)], held[other % len(held)]
                a, b = a * pt.ones((1, 3), "float64"), b if b.shape == (1, 3) else b[:1] * pt.ones((1, 3))
                held.append(MAKERS[kind](a, b))
            one, other, y = (held[at % len(held)] for at in ends)
            return (one * 0.5, other), y

        (one, other), ys = turn(cell, (first, second), xs)
        return ((one + other * 2.0).sum() if of_carry else 0.0) + (ys * wave(*ys.shape)).sum()

    arrays = (wave(1, 3), wave(1, 3) * 0.5, wave(1, 3) + 0.1, wave(count, 1, 3) * 0.7)
    expected, slopes = pt.value_and_grad(lambda arrays: run(loop, arrays))(arrays)
    for traced in (False, True):
        both = pt.value_and_grad(lambda arrays: run(pt.scan, arrays))
        value, found = (pt.jit(both) if traced else both)(arrays)
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)
        for one, other in zip(found, slopes, strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-9, atol=1e-12)
    plain = pt.jit(lambda arrays: run(pt.scan, arrays))(arrays)
    assert plain.item() == pytest.approx(expected.item(), rel=1e-9)


class State(NamedTuple):
    """A carry of a form of its own."""

    h: Any
    parts: dict[str, Any]


@pytest.mark.parametrize("traced", [False, True])
def test_forms(machine: StepMachine, traced: bool) -> None:
    """Named tuples, dicts in another order, numbers, None; a function that runs once; integers beside floats."""
    ran = []

    def cell(state: State, x: Any) -> Any:
        ran.append(1)
        count = state.parts["count"] + 1
        h = state.h * 0.5 + x["a"] + x["b"][0]
        return State(h, {"count": count, "rate": state.parts["rate"] * 2.0}), [
            h,
            None,
            {"at": count, "one": 1.0},
        ]

    def run(xs: Any, h: Any, rate: float) -> Any:
        return pt.scan(cell, State(h, {"rate": rate, "count": 0}), xs)

    xs = {"a": pt.arange(3), "b": (pt.ones(3),)}
    state, (hs, nothing, more) = (pt.jit(run) if traced else run)(xs, pt.zeros(2), 1.0)
    assert len(ran) == 1
    assert isinstance(state, State)
    assert list(state.parts) == ["rate", "count"]
    assert state.h.tolist() == [4.25, 4.25]
    assert (state.parts["rate"].item(), state.parts["count"].item()) == (8.0, 3)
    assert state.parts["count"].dtype == "int64"
    assert hs.tolist() == [[1.0, 1.0], [2.5, 2.5], [4.25, 4.25]]
    assert nothing is None
    assert (more["at"].tolist(), more["one"].tolist()) == ([1, 2, 3], [1.0] * 3)


def test_lengths(machine: StepMachine) -> None:
    """Without xs, and none at all."""
    carry, ys = pt.scan(lambda c, _: (c * 2, c), 1, length=4)
    assert (carry.item(), ys.tolist()) == (16, [1, 2, 4, 8])
    carry, ys = pt.scan(lambda c, x: (c + x, x.astype("float64")), pt.ones(2), pt.zeros((0, 2)))
    assert (carry.tolist(), ys.shape, ys.dtype) == ([1.0, 1.0], (0, 2), "float64")
    value, slope = pt.value_and_grad(
        lambda w: pt.scan(lambda c, x: (c * w + x, None), w, pt.zeros((0, 2)))[0].sum()
    )(pt.ones(2))
    assert (value.item(), slope.tolist()) == (2.0, [1.0, 1.0])


def test_a_gradient_of_a_gradient(machine: StepMachine) -> None:
    def run(turn: Any, w: Any) -> Any:
        h, ys = turn(lambda h, x: (pt.tanh(h * w + x), h * x), w * 0.1, wave(3, 2))
        return (h * h).sum() + ys.sum()

    def slope_length(turn: Any) -> Any:
        return pt.grad(lambda w: pt.square(pt.grad(lambda w: run(turn, w))(w)).sum())(
            pt.array([0.3, -0.6], "float64")
        )

    assert slope_length(pt.scan).tolist() == pytest.approx(slope_length(loop).tolist(), rel=1e-9)


@pytest.mark.parametrize("traced", [False, True])
def test_scans_inside_each_other(machine: StepMachine, traced: bool) -> None:
    def run(turn: Any, w: Any) -> Any:
        def outer(h: Any, x: Any) -> Any:
            h, inner = turn(lambda c, y: (c * w + y, c * y), h, x)
            return pt.tanh(h), inner.sum()

        h, ys = turn(outer, w * 0.5, wave(3, 2, 2))
        return h.sum() + (ys * pt.arange(3)).sum()

    both = pt.value_and_grad(lambda w: run(pt.scan, w))
    w = pt.array([0.4, -0.2], "float64")
    value, slope = (pt.jit(both) if traced else both)(w)
    expected, other = pt.value_and_grad(lambda w: run(loop, w))(w)
    assert value.item() == pytest.approx(expected.item())
    assert slope.tolist() == pytest.approx(other.tolist())


def test_training_is_a_scan(machine: StepMachine) -> None:
    """A gradient inside of it, and one through it."""
    xs, ys = wave(4, 3, 2), wave(4, 3)

    def train(turn: Any, w: Any, rate: float) -> Any:
        def step(w: Any, batch: Any) -> Any:
            loss, slope = pt.value_and_grad(lambda w: pt.square(batch[0] @ w - batch[1]).mean())(w)
            return w - slope * rate, loss

        batches = (xs, ys) if turn is pt.scan else zip(xs, ys, strict=True)
        return turn(step, w, batches)

    w = wave(2)
    trained, losses = pt.jit(lambda w, rate: train(pt.scan, w, rate))(w, 0.3)
    expected, others = train(loop, w, 0.3)
    assert trained.tolist() == pytest.approx(expected.tolist())
    assert losses.tolist() == pytest.approx(others.tolist())
    slopes = [
        pt.grad(lambda w, turn=turn: train(turn, w, 0.3)[1].sum())(w).tolist() for turn in (pt.scan, loop)
    ]
    assert slopes[0] == pytest.approx(slopes[1])


def test_each_step_draws_anew(machine: StepMachine) -> None:
    key = pt.random(5).key()
    _, kept = pt.jit(
        lambda key: pt.scan(lambda c, at: (c, pt.uniform(key, 2, fold=at)), pt.zeros(()), pt.arange(3))
    )(key)
    assert kept.tolist() == [pt.uniform(key, 2, fold=at).tolist() for at in range(3)]


def test_its_own_arrays_may_be_changed_in_place(machine: StepMachine) -> None:
    def cell(h: Any, x: Any) -> Any:
        h += x
        y = h.copy()
        y[0] = 0.0
        return h, y

    start = pt.zeros(2)
    h, ys = pt.scan(cell, start, pt.ones((3, 2)))
    assert start.tolist() == [0.0, 0.0]
    assert (h.tolist(), ys.tolist()) == ([3.0, 3.0], [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])


def test_nothing_is_left_behind(machine: StepMachine) -> None:
    def run(w: Any) -> Any:
        h, ys = pt.scan(lambda h, x: (h * w + x, h), pt.ones(2), pt.ones((5, 2)))
        return h.sum() + ys.sum()

    w = pt.ones(2)
    run(w).item()
    pt.value_and_grad(run)(w)[0].item()
    session.current().main.flush()
    assert len(machine.arrays) == 1


def test_a_scan_holds_what_two_steps_do() -> None:
    """Where no gradient needs what is between."""
    session.use(NumpyMachine(max_bytes=400_000))
    h, _ = pt.scan(lambda h, _: (pt.tanh(h * 0.5 + 1.0), None), pt.ones(10_000), length=100)
    assert h[0].item() == pytest.approx(np.tanh(0.5 * h[1].item() + 1.0))


def test_errors_leave_nothing_behind(machine: StepMachine) -> None:
    def fails(_: Any, __: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        pt.scan(fails, 0, length=2)
    with pytest.raises(KeyError):
        pt.grad(lambda w: pt.scan(fails, w, length=2))(pt.ones(()))
    x = pt.ones(2)
    x += 1
    assert x.tolist() == [2.0, 2.0]


def change(array: Any) -> Any:
    array += 1
    return array


OUTSIDE = pt.ones(2)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: pt.scan(lambda c, x: c, 0, length=1), r"returns \(carry, y\), not Array"),
        (lambda: pt.scan(lambda c, x: ((c, c), x), 0, length=1), "another form"),
        (lambda: pt.scan(lambda c, x: ({"b": c["a"]}, x), {"a": 0}, length=1), "another form"),
        (
            lambda: pt.scan(lambda c, x: (c * 0.5, x), 0, length=1),
            r"int64 \[\], and float32 \[\] after a step",
        ),
        (lambda: pt.scan(lambda c, x: (c[None], x), 0, length=1), r"\[1\] after a step"),
        (lambda: pt.scan(lambda c, x: (c, x), 0), "length is how many"),
        (lambda: pt.scan(lambda c, x: (c, x), 0, pt.ones(())), "of one length"),
        (lambda: pt.scan(lambda c, x: (c, x), 0, [pt.ones(2), pt.ones(3)]), "of one length"),
        (lambda: pt.scan(lambda c, x: (c, x), 0, pt.ones(2), length=3), "of one length"),
        (lambda: pt.scan(lambda c, x: (c, x), 0, length=-1), "0 or more"),
        (lambda: pt.scan(lambda c, x: (c, change(OUTSIDE)), 0, length=1), "a part of the carry"),
        (lambda: pt.scan(lambda c, x: (c, c.item()), 0, length=1), "a value is needed"),
        (lambda: pt.scan(lambda c, x: (c, "text"), 0, length=1), "not a number"),
    ],
)
def test_what_is_refused(function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        function()
