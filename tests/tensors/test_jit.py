"""``jit``: what is replayed does what the function itself does, and memory that it writes over is nobody else's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from propeller.program import tensors as pt
from propeller.program.tensors import Array, TensorError
from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.python_machine import PythonMachine

SHAPES = [(), (3,), (3, 3)]
MAKERS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a * 0.5 - b,
    pt.maximum,
    lambda a, b: pt.where(a > b, a, b),
    lambda a, b: pt.tanh(a) - b,
    lambda a, b: pt.relu(a) + b,
    lambda a, b: a.T,
    lambda a, b: a.T + a,
    lambda a, b: a.reshape(-1).reshape(a.shape),
    lambda a, b: a[::-1] if a.ndim else -a,
    lambda a, b: a.sum(),
    lambda a, b: a.copy(),
    lambda a, b: pt.broadcast_to(a.max(), (3, 3)),
    lambda a, b: pt.zeros_like(a) + 1,
]


def change(kind: int, array: Any, by: Any) -> None:
    """Change an array in place."""
    by = by if by.shape in {(), array.shape} else by.mean()
    if kind == 0:
        array += by
    elif kind == 1:
        array *= 0.5
    elif kind == 2 and array.ndim:
        array[0] = by.sum()
    elif kind == 3 and array.ndim:
        array[1:] = array[:-1]
    else:
        array -= by * 0.25


STEPS = st.lists(
    st.tuples(st.integers(0, len(MAKERS) + 4), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8
)


def program(steps: Any, outputs: Any, captured: list[Array]) -> Callable[..., Any]:
    """A function that makes and changes arrays as the steps say."""

    def function(first: Any, second: Any, rate: Any) -> Any:
        held = [first, second, *captured]
        for kind, at, other in steps:
            a, b = held[at % len(held)], held[other % len(held)]
            if kind < len(MAKERS):
                b = b if b.shape in {(), a.shape} or a.shape == () else b.sum()
                held.append(MAKERS[kind](a, b))
            else:
                change(kind - len(MAKERS), a, b * rate)
        return {
            "made": [held[at % len(held)] for at in outputs],
            "sum": sum((each.sum() for each in held), 0.0),
        }

    return function


def start(shapes: Any, seed: float) -> list[Array]:
    return [(pt.random(int(seed * 10) + at).uniform(shape) - 0.5) * seed for at, shape in enumerate(shapes)]


def flat(result: Any) -> Any:
    return [each.tolist() for each in result["made"]], result["sum"].tolist()


def near(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(near, one, other))
    return bool(one == pytest.approx(other, rel=1e-5, abs=1e-5, nan_ok=True))


@pytest.mark.parametrize("kind", [NumpyMachine, PythonMachine])
@settings(max_examples=40)
@given(
    steps=STEPS,
    outputs=st.lists(st.integers(0, 20), max_size=3),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=4, max_size=4),
    same=st.booleans(),
)
def test_replays_are_what_the_function_does(
    kind: Any, steps: Any, outputs: Any, shapes: Any, same: bool
) -> None:
    """Results, arguments, captured arrays and views of all of them, over calls that follow each other."""
    seen = []
    for traced in (False, True):
        session.use(kind())
        first, second, *captured = start(shapes, 1.0)
        second = first if same else second
        function = program(steps, outputs, captured)
        function = pt.jit(function) if traced else function
        history: list[Any] = []
        witnesses: list[Array] = []
        for call in range(3):
            everything = [first, second, *captured]
            witnesses += [view for each in everything for view in (each.T, each.reshape(-1), each.copy())]
            result = function(first, second, 0.5 + call)
            history.append(flat(result))
            witnesses += result["made"]
            if call == 1:  # from outside, between calls
                for each in captured:
                    change(0, each, pt.ones(()))
        history.append([each.tolist() for each in [first, second, *captured, *witnesses]])
        seen.append(history)
    assert near(*seen)


def test_traced_once(machine: StepMachine) -> None:
    """The function's own Python runs once for each kind of arguments; a float is no kind, an int is."""
    ran = []

    @pt.jit
    def step(x: Any, rate: Any, times: int, model: Any) -> Any:
        ran.append(x.shape)
        for _ in range(times):
            x = x * rate
        return x + model["w"]

    two, model = pt.ones(2), {"w": pt.ones(())}
    assert step(two, 2.0, 1, model).tolist() == [3.0, 3.0]
    assert step(two, 3.0, 1, {"w": pt.zeros(())}).tolist() == [3.0, 3.0]
    assert len(ran) == 1
    assert step(two, 2.0, 3, model).tolist() == [9.0, 9.0]
    assert step(pt.ones(3), 2.0, 1, model).tolist() == [3.0] * 3
    assert step(pt.ones(2, "float64"), 2.0, 1, model).dtype == "float64"
    assert step(two, 2, 1, model).tolist() == [3.0, 3.0]
    assert len(ran) == 5
    session.use(type(machine)())  # arrays of another machine are traced anew
    assert step(pt.ones(2), 2.0, 1, {"w": pt.ones(())}).tolist() == [3.0, 3.0]
    assert len(ran) == 6


def test_captured_array_of_another_kind_is_traced_again(machine: StepMachine) -> None:
    held = {"x": pt.ones(2)}
    x = held["x"]
    add = pt.jit(lambda: x + 1)
    assert add().tolist() == [2.0, 2.0]
    x[...] = pt.array([5.0, 6.0])
    assert add().tolist() == [6.0, 7.0]
    x.tape, x.handle, x.shape = (other := pt.ones(3)).tape, other.handle, other.shape
    other.handle = -1  # x has it now
    assert add().tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x if x.sum() > 0 else -x, "a value is needed inside a traced function"),
        (lambda x: float(x.sum()), "a value is needed inside a traced function"),
        (lambda x: x + pt.ones(7), "shapes .* do not fit together"),
        (lambda x: pt.random(1).normal(3), "draw outside"),
        (lambda x: object(), "returns arrays, numbers and their containers"),
    ],
)
def test_errors_leave_everything_as_it_was(machine: StepMachine, function: Any, text: str) -> None:
    x, held = pt.array([1.0, 2.0, 3.0]), pt.array([4.0])

    def changing(x: Any) -> Any:
        nonlocal held
        x *= 10.0
        held += 1.0
        x[0] = 7.0
        return function(x)

    step = pt.jit(changing)
    for _ in range(2):
        with pytest.raises(TensorError, match=text):
            step(x)
        assert x.tolist() == [1.0, 2.0, 3.0]
        assert held.tolist() == [4.0]
        assert (x + held).tolist() == [5.0, 6.0, 7.0]
    assert not session.current().tracing


def test_containers_of_arguments_are_kept(machine: StepMachine) -> None:
    def swaps(model: Any) -> None:
        model["w"] = model["w"] + 1

    with pytest.raises(TensorError, match="must not put other arrays into its arguments"):
        pt.jit(swaps)({"w": pt.ones(2)})


def test_array_that_outlives_its_trace(machine: StepMachine) -> None:
    kept: list[Any] = []
    pt.jit(lambda x: kept.append(x + 1))(pt.ones(2))
    with pytest.raises(TensorError, match="exists only inside the traced function"):
        kept[0].tolist()
    with pytest.raises(TensorError, match="exists only inside the traced function"):
        _ = pt.ones(2) + kept[0]


def test_argument_that_is_also_captured(machine: StepMachine) -> None:
    """Two ways to one array, of which only one would be changed."""
    w = pt.ones(2)

    def function(x: Any) -> Any:
        x += 1.0
        return w * 1.0

    step = pt.jit(function)
    assert step(pt.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(TensorError, match="only pass it in"):
        step(w)
    assert w.tolist() == [1.0, 1.0]
    assert pt.jit(lambda x: x + w)(w).tolist() == [2.0, 2.0]  # nothing changes: no harm


def test_results_that_repeat_or_pass_through(machine: StepMachine) -> None:
    @pt.jit
    def function(x: Any) -> Any:
        total = x + 1
        return total, total, x, x.T, {"same": total}, 3, None, "text"

    for _ in range(2):
        x = pt.array([[1.0, 2.0], [3.0, 4.0]])
        one, two, same, turned, named, *rest = function(x)
        assert rest == [3, None, "text"]
        assert one is two is named["same"]
        assert same is x
        assert one.tolist() == [[2.0, 3.0], [4.0, 5.0]]
        same += 10.0
        assert turned.tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_broadcast_result_can_be_changed_after(machine: StepMachine) -> None:
    """Its elements share memory, which must not be written over."""
    spread = pt.jit(lambda x: pt.broadcast_to(x.sum(), (2, 2)))
    wide = spread(pt.ones(2))

    @pt.jit
    def change(x: Any) -> None:
        x += pt.array([[0.0, 1.0], [2.0, 3.0]])

    change(wide)
    assert wide.tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_memory_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that changes weights in place allocates nothing for them."""
    machine = NumpyMachine()
    session.use(machine)

    @pt.jit
    def step(w: Any, g: Any) -> None:
        w -= g

    w, g = pt.zeros(1000) + 1.0, pt.ones(1000) * 0.5
    step(w, g)
    w.tolist()
    address = machine.arrays[w.handle].value.ctypes.data
    for _ in range(5):
        step(w, g)
    assert w.tolist()[0] == -2.0
    assert machine.arrays[w.handle].value.ctypes.data == address


def test_only_what_is_needed_is_done(machine: StepMachine) -> None:
    step = pt.jit(lambda x: (pt.exp(x) @ pt.ones((2, 2)), x + 1)[1])
    x = pt.ones(2)
    step(x).tolist()
    before = machine.steps_done
    step(x).tolist()
    assert machine.steps_done - before <= 4  # call, the sum, read, free


def test_steps_lost_to_another_one_s_failure_are_kept_anew(machine: StepMachine) -> None:
    """What was held when a step failed is gone, a function's steps among it."""
    twice = pt.jit(lambda x: x * 2)
    outside = pt.array([1.0, 2.0])[pt.array([7])]
    held = twice(pt.array([1.0]))
    with pytest.raises(TensorError, match="outside 2 rows"):
        outside.tolist()
    with pytest.raises(TensorError, match="no array with the handle"):
        held.tolist()
    assert twice(pt.array([3.0])).tolist() == [6.0]


def test_a_callable_without_a_name(machine: StepMachine) -> None:
    assert pt.jit(partial(pt.maximum, 2.0))(pt.array([1.0, 3.0])).tolist() == [2.0, 3.0]
    with pytest.raises(TensorError, match="of one number"):
        pt.grad(partial(pt.maximum, 2.0))(pt.array([1.0, 3.0]))


def test_what_is_the_same_at_each_call_is_computed_once(
    machine: StepMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a mean begins with constants; they are not changed by what a call does with them."""
    made: list[str] = []
    bind = type(machine).bind

    def counting(self: StepMachine, name: str, *given: Any) -> Any:
        kernel = bind(self, name, *given)

        def counted(*values: Any) -> Any:
            made.append(name)
            return kernel(*values)

        return counted

    monkeypatch.setattr(type(machine), "bind", counting)
    step = pt.jit(lambda x: (pt.full((2,), 3.0) * 2.0 + x, pt.grad(lambda each: each.mean())(x)))
    for at in range(3):
        total, slope = step(pt.array([float(at), 1.0]))
        assert total.tolist() == [6.0 + at, 7.0]
        assert slope.tolist() == [0.5, 0.5]
        if at == 0:
            first = len(made)
            made.clear()
    assert len(made) < first
    assert "full" not in made
