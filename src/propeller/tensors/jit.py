"""``jit``: record a function's operations once, and do them again on new arguments without running its Python.

The shape of what comes in is what a trace is for: arrays count by dtype and shape and floats not at all, so that a learning rate may change;
every other argument counts by its value, but for an ``ArrayContainer``, which says itself what it is known by. Arrays that the function finds outside its arguments are inputs like them, with the value they
have at each call, and so are arrays that it changes in place. (The idea is ``jax.jit``'s.)
"""

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from propeller.tensors import session
from propeller.tensors.array import Array
from propeller.tensors.shapes import FLOAT, Spec, TensorError
from propeller.tensors.tape import Handle, MainTape, Tape, needed_steps
from propeller.tensors.trees import like

P = ParamSpec("P")
R = TypeVar("R")

_WARNED_TRACES = 32
"""Traces of one function that are hardly meant."""


class ArrayContainer(ABC):
    """An argument of traced functions that has arrays in it, as a dict has."""

    @abstractmethod
    def array_parts(self) -> tuple[Any, Any]:
        """What it is known by (hashable), and its arrays and floats in dicts, lists and tuples."""

    @abstractmethod
    def with_array_parts(self, parts: Any) -> "ArrayContainer":
        """The same with other arrays and floats, in the structure of ``array_parts``."""


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """The function, traced on its first call for each kind of arguments and replayed from then on.

    It must do the same operations for the same kinds of arguments, may change arrays in place, and returns arrays, numbers, None, or
    tuples, lists and dicts of them. A value that is compared inside is not there yet: that raises TensorError.
    """
    traces: dict[Any, _Trace] = {}

    @functools.wraps(function)
    def replay(*args: P.args, **kwargs: P.kwargs) -> R:
        now = session.current()
        if now.tracing or now.calls is not None:
            return function(*args, **kwargs)
        leaves: list[Any] = []
        key = _flatten((args, kwargs), leaves, {})
        trace = traces.get(key)
        if trace is None or not trace.is_valid_on(now.main):
            trace = traces[key] = _trace(function, args, kwargs)
            if len(traces) == _WARNED_TRACES:
                _warn(getattr(function, "__name__", "a function"))
        result: R = trace(now.main, leaves)
        return result

    return replay


def _warn(function: str) -> None:
    warnings.warn(
        f"{function} was recorded {_WARNED_TRACES} times, and each recording is kept: of what changes at each call, "
        "pass numbers as float(…) or array(…), and arrays of few shapes",
        RuntimeWarning,
        stacklevel=3,
    )


class _TraceTape(Tape):
    """The tape of a function being traced: handles are slots, those of inputs as they are met."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[int, Spec]] = []
        self.arguments: dict[int, Array] = {}
        self.captured: dict[int, _Captured] = {}

    def add_input(self, spec: Spec) -> Array:
        """What stands for an argument, or for an array from outside."""
        array = Array(self, self.new_handle(), spec)
        self.inputs.append((array.handle, spec))
        return array

    def handle_of(self, value: Handle) -> int:
        """The slot of an array; one from outside becomes an input."""
        if value.tape is self:
            return value.handle
        captured = self.captured.get(id(value))
        if captured is None:
            if not isinstance(value, Array) or not isinstance(value.tape, MainTape):
                return super().handle_of(value)
            slot = self.add_input(value.spec).handle
            captured = self.captured[id(value)] = _Captured(value, slot, value.tape, value.handle)
        return captured.slot

    def read(self, value: Handle) -> bytes:
        """There are no values to read; says why."""
        tape = session.current().tape
        if tape is not self:
            tape.handle_of(value)  # raises: it outlived the trace
        return super().read(value)

    def adopt(self, value: Handle) -> None:
        """An array from outside is about to be changed in place."""
        self.handle_of(value)

    def restore_captured(self) -> dict[int, int]:
        """Put the arrays from outside back as they were; returns the new slots of those that were changed, by their ids."""
        changed = {}
        for key, captured in self.captured.items():
            array = captured.array
            if array.tape is self:
                changed[key] = array.handle
                array.tape, array.handle = captured.tape, captured.handle
        return changed


@dataclass(frozen=True)
class _Captured:
    """An array that a function found outside its arguments, its slot, and where it was before."""

    array: Array
    slot: int
    tape: MainTape
    handle: int


@dataclass(frozen=True)
class _Output:
    """In the plan of a result: the output at a place."""

    at: int


@dataclass(frozen=True)
class _Input:
    """In the plan of a result: the argument or captured array at a place."""

    at: int


@dataclass
class _Trace:
    """What a call needs: the routine's number, where inputs come from, and where outputs go."""

    number: int
    tape: MainTape
    captured: list[tuple[Array, Spec]]
    changed_leaves: list[int]
    changed_captured: list[int]
    result: Any
    """A plan: the function's result, with places for its arrays."""
    specs: list[Spec]
    """Of the outputs."""

    def is_valid_on(self, tape: MainTape) -> bool:
        """Whether it can be replayed: on the tape that it was made on, with what it captured still of the same kind."""
        there = self.tape is tape and tape.has_routine(self.number)
        return there and all(array.spec == spec for array, spec in self.captured)

    def __call__(self, tape: MainTape, leaves: list[Any]) -> Any:
        self._check_apart(leaves)
        operands = [
            leaf.handle if isinstance(leaf, Array) and leaf.tape is tape else tape.encode(leaf)[0]
            for leaf in leaves
        ]
        operands += [array.handle for array, _ in self.captured]
        handles = tape.call(self.number, operands, len(self.specs))
        outputs = [leaves[at] for at in self.changed_leaves]
        outputs += [self.captured[at][0] for at in self.changed_captured]
        for array, handle in zip(outputs, handles, strict=False):
            tape.release(array.handle)
            array.handle = handle
        count = len(outputs)
        outputs += [Array(tape, handles[at], self.specs[at]) for at in range(count, len(handles))]
        return _build(self.result, outputs, [*leaves, *[array for array, _ in self.captured]])

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
    now = session.current()
    main, tape = now.main, _TraceTape()
    stand_ins: list[Any] = []
    arguments = _stand_in((args, kwargs), tape, stand_ins)
    slots, before = [each.handle for each in stand_ins], _contents(arguments)
    try:
        with now.record_on(tape):
            result = function(*arguments[0], **arguments[1])
    finally:
        changed = tape.restore_captured()
    _check_containers(before, _contents(arguments))
    captured = list(tape.captured.items())
    changed_leaves = [at for at, each in enumerate(stand_ins) if each.handle != slots[at]]
    changed_captured = [at for at, (key, _) in enumerate(captured) if key in changed]
    outputs = [stand_ins[at].handle for at in changed_leaves]
    outputs += [changed[captured[at][0]] for at in changed_captured]
    specs = [stand_ins[at].spec for at in changed_leaves]
    specs += [captured[at][1].array.spec for at in changed_captured]
    donated = [slots[at] for at in changed_leaves] + [captured[at][1].slot for at in changed_captured]
    known: dict[int, Any] = {id(each): _Input(at) for at, each in enumerate(stand_ins)}
    known |= {key: _Input(len(stand_ins) + at) for at, (key, _) in enumerate(captured)}
    plan = _plan(result, tape, known, outputs, specs)
    # Slots are renumbered: inputs in their order, then the results that an output needs.
    order = {slot: at for at, (slot, _) in enumerate(tape.inputs)}
    needed = needed_steps(tape.steps, outputs)
    for _, slot, _, _ in needed:
        order[slot] = len(order)
    steps = [
        (name, order[slot], [each if isinstance(each, list) else order[each] for each in operands], params)
        for name, slot, operands, params in needed
    ]
    number = main.define(
        [spec for _, spec in tape.inputs],
        [order[slot] for slot in donated],
        steps,
        [order[slot] for slot in outputs],
    )
    return _Trace(
        number=number,
        tape=main,
        # What only the result uses is captured by now, too.
        captured=[(each.array, each.array.spec) for each in tape.captured.values()],
        changed_leaves=changed_leaves,
        changed_captured=changed_captured,
        result=plan,
        specs=specs,
    )


def _flatten(value: Any, leaves: list[Any], places: dict[int, int]) -> Any:
    """What a call is known by; its arrays and floats go to ``leaves``, and ``places`` has where an array is by its id."""
    if isinstance(value, Array):
        return _array_key(value, leaves, places)
    if isinstance(value, float):
        leaves.append(value)
        return float
    if isinstance(value, dict):
        return ("dict", *[(name, _flatten(each, leaves, places)) for name, each in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), *[_flatten(each, leaves, places) for each in value])
    if isinstance(value, ArrayContainer):
        known_by, parts = value.array_parts()
        return type(value), known_by, _flatten(parts, leaves, places)
    return _value_key(value)


def _array_key(array: Array, leaves: list[Any], places: dict[int, int]) -> Any:
    place = places.setdefault(id(array), len(leaves))
    if place < len(leaves):  # the same array twice is one array inside, too
        return place
    leaves.append(array)
    return array.dtype, array.shape


def _value_key(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        raise TensorError(f"a traced function does not take a {type(value).__name__}") from None
    return "is", type(value), value


def _stand_in(value: Any, tape: _TraceTape, made: list[Any]) -> Any:
    """The same structure with stand-ins for its arrays and floats."""
    if isinstance(value, Array):
        known = tape.arguments.get(id(value))
        if known is None:
            known = tape.arguments[id(value)] = tape.add_input(value.spec)
            made.append(known)
        return known
    if isinstance(value, float):
        made.append(tape.add_input((FLOAT, ())))
        return made[-1]
    if isinstance(value, dict):
        return {name: _stand_in(each, tape, made) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return like(value, [_stand_in(each, tape, made) for each in value])
    if isinstance(value, ArrayContainer):
        return value.with_array_parts(_stand_in(value.array_parts()[1], tape, made))
    return value


def _contents(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a container, at any depth, by where they are."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return []
    return [((key, *place), part) for key, each in items for place, part in [((), each), *_contents(each)]]


def _check_containers(before: list[tuple[Any, Any]], after: list[tuple[Any, Any]]) -> None:
    """Refuse a function that puts other arrays into its arguments' containers: a replay would not."""
    if [place for place, _ in before] != [place for place, _ in after] or any(
        one is not other for (_, one), (_, other) in zip(before, after, strict=True)
    ):
        raise TensorError(
            "a traced function must not put other arrays into its arguments: change them in place (w -= …), or return new ones"
        )


def _plan(value: Any, tape: _TraceTape, known: dict[int, Any], outputs: list[int], specs: list[Spec]) -> Any:
    """How to build a result: arrays become places in ``outputs``; what was passed in is handed back itself."""
    if isinstance(value, Array):
        if id(value) not in known:
            outputs.append(tape.handle_of(value))
            specs.append(value.spec)
            known[id(value)] = _Output(len(outputs) - 1)
        return known[id(value)]
    if isinstance(value, dict):
        return {name: _plan(each, tape, known, outputs, specs) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return like(value, [_plan(each, tape, known, outputs, specs) for each in value])
    if value is None or isinstance(value, int | float | str):
        return value
    raise TensorError(
        f"a traced function returns arrays, numbers and their containers, not a {type(value).__name__}"
    )


def _build(plan: Any, outputs: list[Array], inputs: list[Any]) -> Any:
    if isinstance(plan, _Output):
        return outputs[plan.at]
    if isinstance(plan, _Input):
        return inputs[plan.at]
    if isinstance(plan, dict):
        return {name: _build(each, outputs, inputs) for name, each in plan.items()}
    if isinstance(plan, list | tuple):
        return like(plan, [_build(each, outputs, inputs) for each in plan])
    return plan
