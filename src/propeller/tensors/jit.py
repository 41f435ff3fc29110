"""``jit``: record a function's operations once, and do them again on new arguments without running its Python.

The shape of what comes in is what a trace is for: arrays count by dtype and shape and floats not at all, so that a learning rate may change;
every other argument counts by its value. Arrays that the function finds outside its arguments are inputs like them, with the value they
have at each call, and so are arrays that it changes in place. (The idea is ``jax.jit``'s.)
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from propeller.tensors import hints, session
from propeller.tensors.array import Array
from propeller.tensors.shapes import FLOAT, Spec, TensorError
from propeller.tensors.tape import Handle, MainTape, Tape

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """The function, traced on its first call for each kind of arguments and replayed from then on.

    It must do the same operations for the same kinds of arguments, may change arrays in place, and returns arrays, numbers, None, or
    tuples, lists and dicts of them. A value that is compared inside is not there yet: that raises TensorError.
    """
    traces: dict[Any, _Trace] = {}

    @functools.wraps(function)
    def replayed(*args: P.args, **kwargs: P.kwargs) -> R:
        if session.tracing() or session.noting():
            return function(*args, **kwargs)
        leaves: list[Any] = []
        key = _flatten((args, kwargs), leaves)
        trace = traces.get(key)
        if trace is None or not trace.fits():
            trace = traces[key] = _trace(function, args, kwargs)
            hints.count_recordings(getattr(function, "__name__", "a function"), len(traces))
        result: R = trace(session.main(), leaves)
        return result

    return replayed


class _Recorder(Tape):
    """The tape of a function being traced: handles are slots, inputs first by need."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[int, Spec]] = []
        self.arguments: dict[int, Array] = {}
        self.captured: dict[int, tuple[Array, int, tuple[Tape, int]]] = {}

    def leaf(self, spec: Spec) -> Array:
        """What stands for an argument."""
        made: Array = self.new(spec)
        self.inputs.append((made.handle, spec))
        return made

    def handle_of(self, value: Handle) -> int:
        """The slot of an array; one from outside becomes an input."""
        if value.tape is self:
            return value.handle
        known = self.captured.get(id(value))
        if known is None:
            if not isinstance(value, Array) or not isinstance(value.tape, MainTape):
                return super().handle_of(value)
            slot = self.leaf(value.spec).handle
            known = self.captured[id(value)] = (value, slot, (value.tape, value.handle))
        return known[1]

    def read(self, value: Handle) -> bytes:
        """There are no values to read; says why."""
        if session.current() is not self:
            session.current().handle_of(value)  # raises: it outlived the trace
        return super().read(value)

    def adopt(self, value: Handle) -> None:
        """An array from outside is about to be changed in place."""
        self.handle_of(value)

    def give_back(self) -> dict[int, int]:
        """Put the arrays from outside back as they were; returns the new slots of those that were changed, by their ids."""
        changed = {}
        for key, (value, _slot, (tape, handle)) in self.captured.items():
            if value.tape is self:
                changed[key] = value.handle
                value.tape, value.handle = tape, handle
        return changed


@dataclass
class _Trace:
    """What a call needs: the steps' number, where inputs come from, and where outputs go."""

    number: int
    tape: MainTape
    captured: list[tuple[Array, Spec]]
    changed_leaves: list[int]
    changed_captured: list[int]
    outputs: list[Spec]
    result: Any

    def fits(self) -> bool:
        """Whether it can be replayed: on the tape that it was made on, with what it captured still of the same kind."""
        there = self.tape is session.main() and self.tape.keeps(self.number)
        return there and all(array.spec == spec for array, spec in self.captured)

    def __call__(self, tape: MainTape, leaves: list[Any]) -> Any:
        self._check_apart(leaves)
        operands = [tape.operand(leaf)[0] for leaf in leaves]
        operands += [array.handle for array, _ in self.captured]
        made = tape.call(self.number, operands, self.outputs)
        changed = [leaves[at] for at in self.changed_leaves] + [
            self.captured[at][0] for at in self.changed_captured
        ]
        for array, new in zip(changed, made, strict=False):
            array.handle, new.handle = new.handle, array.handle
        return _build(self.result, made, [*leaves, *[array for array, _ in self.captured]])

    def _check_apart(self, leaves: list[Any]) -> None:
        """An array that comes in both ways would be two inside, of which only one is changed."""
        if self.captured and (self.changed_leaves or self.changed_captured):
            outside = {id(array) for array, _ in self.captured}
            if any(id(leaf) in outside for leaf in leaves):
                raise TensorError(
                    "a traced function that changes arrays got one as an argument that it also uses from outside: "
                    "only pass it in"
                )


def _trace(function: Callable[..., Any], args: Any, kwargs: Any) -> _Trace:
    recorder = _Recorder()
    stand_ins: list[Any] = []
    given = _stand_in((args, kwargs), recorder, stand_ins)
    slots, before = [each.handle for each in stand_ins], _parts(given)
    try:
        with session.on(recorder):
            result = function(*given[0], **given[1])
    finally:
        changed = recorder.give_back()
    _check_kept(before, _parts(given))
    captured = list(recorder.captured.items())
    changed_leaves = [at for at, each in enumerate(stand_ins) if each.handle != slots[at]]
    changed_captured = [at for at, (key, _) in enumerate(captured) if key in changed]
    outputs = [stand_ins[at].handle for at in changed_leaves] + [
        changed[captured[at][0]] for at in changed_captured
    ]
    specs = [stand_ins[at].spec for at in changed_leaves] + [
        captured[at][1][0].spec for at in changed_captured
    ]
    known: dict[int, Any] = {id(each): _Given(at) for at, each in enumerate(stand_ins)}
    known |= {key: _Given(len(stand_ins) + at) for at, (key, _) in enumerate(captured)}
    plan = _plan(result, recorder, known, outputs, specs)
    # What only the result uses is captured by now, too.
    captured = list(recorder.captured.items())
    inputs = [spec for _, spec in recorder.inputs]
    tape = session.main()
    # Slots are renumbered: inputs in their order, then the results that an output needs.
    order = {slot: at for at, (slot, _) in enumerate(recorder.inputs)}
    needed = _needed(recorder.steps, outputs)
    for _, slot, _, _ in needed:
        order[slot] = len(order)
    steps = [
        (name, order[slot], [each if isinstance(each, list) else order[each] for each in operands], params)
        for name, slot, operands, params in needed
    ]
    given_up = [slots[at] for at in changed_leaves] + [captured[at][1][1] for at in changed_captured]
    number = tape.define(inputs, [order[slot] for slot in given_up], steps, [order[slot] for slot in outputs])
    return _Trace(
        number,
        tape,
        [(value, value.spec) for _, (value, _, _) in captured],
        changed_leaves,
        changed_captured,
        specs,
        plan,
    )


def _needed(steps: Sequence[Any], outputs: Sequence[int]) -> list[Any]:
    """The steps without which an output cannot be; nothing else is missed, as steps do nothing but give a result."""
    wanted, needed = set(outputs), []
    for step in reversed(steps):
        if step[1] in wanted:
            needed.append(step)
            wanted.update(operand for operand in step[2] if not isinstance(operand, list))
    return needed[::-1]


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """What a call is known by; its arrays and floats go to ``leaves``."""
    if isinstance(value, Array):
        for at, known in enumerate(leaves):
            if known is value:  # the same array twice is one array inside, too
                return at
        leaves.append(value)
        return value.dtype, value.shape
    if isinstance(value, float):
        leaves.append(value)
        return float
    if isinstance(value, dict):
        return ("dict", *[(name, _flatten(each, leaves)) for name, each in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), *[_flatten(each, leaves) for each in value])
    try:
        hash(value)
    except TypeError:
        raise TensorError(f"a traced function does not take a {type(value).__name__}") from None
    return "is", type(value), value


def _stand_in(value: Any, recorder: _Recorder, made: list[Any]) -> Any:
    """The same structure with stand-ins for its arrays and floats."""
    if isinstance(value, Array):
        known = recorder.arguments.get(id(value))
        if known is None:
            known = recorder.arguments[id(value)] = recorder.leaf(value.spec)
            made.append(known)
        return known
    if isinstance(value, float):
        made.append(recorder.leaf((FLOAT, ())))
        return made[-1]
    if isinstance(value, dict):
        return {name: _stand_in(each, recorder, made) for name, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [_stand_in(each, recorder, made) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a container, at any depth, by where they are."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return []
    return [((key, *place), part) for key, each in items for place, part in [((), each), *_parts(each)]]


def _check_kept(before: list[tuple[Any, Any]], after: list[tuple[Any, Any]]) -> None:
    """Refuse a function that puts other arrays into its arguments' containers: a replay would not."""
    if [place for place, _ in before] != [place for place, _ in after] or any(
        one is not other for (_, one), (_, other) in zip(before, after, strict=True)
    ):
        raise TensorError(
            "a traced function must not put other arrays into its arguments: change them in place (w -= …), or return new ones"
        )


def _plan(
    value: Any, recorder: _Recorder, known: dict[int, Any], outputs: list[int], specs: list[Spec]
) -> Any:
    """How to build a result: arrays become positions in ``outputs``; what was given is given back itself."""
    if isinstance(value, Array):
        if id(value) not in known:
            outputs.append(recorder.handle_of(value))
            specs.append(value.spec)
            known[id(value)] = _Place(len(outputs) - 1)
        return known[id(value)]
    if isinstance(value, dict):
        return {name: _plan(each, recorder, known, outputs, specs) for name, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [_plan(each, recorder, known, outputs, specs) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if value is None or isinstance(value, int | float | str):
        return value
    raise TensorError(
        f"a traced function returns arrays, numbers and their containers, not a {type(value).__name__}"
    )


@dataclass(frozen=True)
class _Place:
    """A result's place."""

    at: int


@dataclass(frozen=True)
class _Given:
    """An argument's or captured array's."""

    at: int


def _build(plan: Any, made: list[Any], given: list[Any]) -> Any:
    if isinstance(plan, _Place):
        return made[plan.at]
    if isinstance(plan, _Given):
        return given[plan.at]
    if isinstance(plan, dict):
        return {name: _build(each, made, given) for name, each in plan.items()}
    if isinstance(plan, list | tuple):
        parts = [_build(each, made, given) for each in plan]
        return type(plan)(*parts) if hasattr(plan, "_fields") else type(plan)(parts)
    return plan
