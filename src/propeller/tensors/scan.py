"""``scan``: a function done step after step along an axis, as recurrent networks do, whose Python runs once.

Its operations are recorded once and repeated for each step, and so are those of its gradient, from the last step to the first. (The idea is
``jax.lax.scan``'s.)
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from propeller.tensors import session
from propeller.tensors.array import Array, record
from propeller.tensors.functions import array, full
from propeller.tensors.grad import dependent_calls, is_float, propagate
from propeller.tensors.operations import Call, OperationCall
from propeller.tensors.repetition import BodyTape, Frame, Repetition
from propeller.tensors.shapes import WEAK, Spec, TensorError
from propeller.tensors.trees import leaves_as_in, leaves_of, map_leaves

__all__ = ["scan"]

_STRONG = {"float": "float32", "int": "int64"}


def scan(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None, length: int | None = None
) -> tuple[Any, Any]:
    """Do ``carry, y = function(carry, x)`` for each ``x`` along the first axis of ``xs``.

    Args:
        function: Is run once, with arrays that have shapes and no values. It gives the next carry, of the same form, shapes and dtypes, and what is kept of
            the step. It must not change arrays from outside in place.
        carry: What goes from step to step: arrays and numbers in dicts, lists and tuples.
        xs: Arrays of one length in dicts, lists and tuples, or None.
        length: How many steps there are; needed where ``xs`` has no arrays.

    Returns:
        The last carry, and what was kept of the steps, stacked along a new first axis.

    Raises:
        TensorError: The arrays of ``xs`` are not of one length, or the function gives something else.
    """
    carries, inputs = [_strong(leaf) for leaf in leaves_of(carry)], leaves_of(xs)
    count = _count(inputs, length)
    now = session.current()
    calls = now.calls
    body, form = _record_body(function, carry, xs, carries, inputs)
    rows: list[Call] = []
    stacks: list[Call] = []
    frames: list[Frame] = []
    kept: list[list[Array]] = [[] for _ in body.ys]
    held = carries
    with now.record_on(now.tape, None if calls is None else rows):
        for at in range(count):
            frame = body.steps.repeat([*held, *(_row(x, at) for x in inputs)])
            held = [frame[slot] for slot in body.carry_slots]
            for parts, slot in zip(kept, body.y_slots, strict=True):
                parts.append(frame[slot])
            if calls is not None:
                frames.append(frame)
    with now.record_on(now.tape, None if calls is None else stacks):
        ys = [_stacked(parts, y.spec) for parts, y in zip(kept, body.ys, strict=True)]
    if calls is not None and count:
        calls.append(_ScanCall(body, frames, carries, inputs, [*held, *ys], (rows, stacks)))
    last, stacked = iter(held), iter(ys)
    return map_leaves(lambda _: next(last), carry), map_leaves(lambda _: next(stacked), form)


@dataclass(frozen=True)
class _Body:
    """A function as it was recorded: what stands for its arguments, what it gave, and the operations between these."""

    tape: BodyTape
    carries: list[Array]
    xs: list[Array]
    next_carries: list[Array]
    ys: list[Array]
    carry_slots: list[int]
    y_slots: list[int]
    steps: Repetition
    calls: list[Call]
    """Of a function that is differentiated."""


def _record_body(
    function: Callable[[Any, Any], Any], carry: Any, xs: Any, carries: list[Array], inputs: list[Array]
) -> tuple[_Body, Any]:
    """Run the function once; also returns the form of what it keeps."""
    now = session.current()
    differentiated = now.calls is not None
    tape, calls = BodyTape(), list[Call]()
    held = [tape.add_input(each.spec) for each in carries]
    given = [tape.add_input((each.dtype, each.shape[1:])) for each in inputs]
    slots = [each.handle for each in (*held, *given)]
    one, other = iter(held), iter(given)
    arguments = map_leaves(lambda _: next(one), carry), map_leaves(lambda _: next(other), xs)
    with now.record_on(tape, calls if differentiated else None):
        result = function(*arguments)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TensorError(f"scan: its function returns (carry, y), not {type(result).__name__}")
        following = leaves_as_in(carry, result[0])
        if following is None:
            raise TensorError("scan: the carry that its function returns has another form than the first one")
        next_carries = [_strong(each) for each in following]
        ys = [_strong(each) for each in leaves_of(result[1])]
    for before, after in zip(held, next_carries, strict=True):
        if before.spec != after.spec:
            raise TensorError(
                f"scan: a part of the carry is {before.dtype} {list(before.shape)}, and {after.dtype} {list(after.shape)} "
                "after a step: give it the shape and dtype that it has then from the beginning"
            )
    carry_slots, y_slots = ([tape.handle_of(each) for each in part] for part in (next_carries, ys))
    steps = Repetition(tape, slots, None if differentiated else [*carry_slots, *y_slots])
    return _Body(tape, held, given, next_carries, ys, carry_slots, y_slots, steps, calls), result[1]


class _ScanCall:
    """A scan as gradients take it: its own is a scan backwards."""

    def __init__(
        self,
        body: _Body,
        frames: list[Frame],
        carries: list[Array],
        inputs: list[Array],
        results: list[Array],
        beside: tuple[list[Call], list[Call]],
    ) -> None:
        """Args: beside: the operations before and after the steps."""
        self._body, self._frames, self._inputs, self._beside = body, frames, inputs, beside
        self.operands: Sequence[Any] = [*carries, *inputs, *body.steps.captured]
        self.results: Sequence[Any] = results

    def expanded(self) -> list[OperationCall]:
        """As ``CompoundCall.expanded``."""
        steps = [call for frame in self._frames for call in self._body.steps.calls(frame)]
        return [*self._beside[0], *steps, *self._beside[1]]  # type: ignore[list-item]  # nothing else is recorded there

    def exchanged(self, one: Any, other: Any) -> "_ScanCall":
        """As ``CompoundCall.exchanged``."""
        if any(each is one or each is other for each in (*self.operands, *self.results)):
            raise TensorError(
                "where a gradient is computed, an array that went into a scan or came out of one must not be changed in "
                "place: write x = x + …"
            )
        return self

    def gradients(self, uppers: Sequence[Any], wanted: Container[int]) -> list[Array | None]:
        """As ``CompoundCall.gradients``."""
        body, count = self._body, len(self._frames)
        held, among_xs = len(body.carries), len(body.carries) + len(body.xs)
        stand_ins = [*body.carries, *body.xs, *body.steps.captured]
        targets = [
            at
            for at, (each, operand) in enumerate(zip(stand_ins, self.operands, strict=True))
            if is_float(each) and (at < held or id(operand) in wanted)
        ]
        kept = [
            (y, _as(upper, (y.dtype, (count, *y.shape))))
            for y, upper in zip(body.ys, uppers[held:], strict=True)
            if upper is not None and is_float(y)
        ]
        back, slots = _record_back(body, [y for y, _ in kept], [stand_ins[at] for at in targets])
        calls = session.current().calls
        # Of the carry, that of the step that was last gone through; of what all steps use, the sum.
        found: dict[int, Array | None] = {at: uppers[at] for at in targets if at < held}
        rows: dict[int, list[Array]] = {}
        for step in reversed(range(count)):
            given = [_as(found[at], stand_ins[at].spec) for at in targets if at < held]
            given += [_row(upper, step) for _, upper in kept]
            frame = back.repeat(given, partial(self._then, self._frames[step]))
            if calls is not None:
                calls.extend(back.calls(frame))
            for at, slot in zip(targets, slots, strict=True):
                part = None if slot is None else frame[slot]
                if at < held or part is None:
                    found[at] = part
                elif at < among_xs:
                    rows.setdefault(at, []).append(part)
                else:
                    before = found.get(at)
                    found[at] = part if before is None else before + part
        for at, parts in rows.items():
            found[at] = _stacked(parts[::-1], stand_ins[at].spec)
        return [found.get(at) for at in range(len(stand_ins))]

    def _then(self, frame: Frame, array: Array) -> Array:
        """What an array of the body was in a step."""
        then: Array = frame[array.handle] if array.tape is self._body.tape else array
        return then


def _record_back(
    body: _Body, ys: Sequence[Array], targets: Sequence[Array]
) -> tuple[Repetition, list[int | None]]:
    """The gradients of a step's targets by those of the next carry and of what is kept, and their slots."""
    tape = BodyTape()
    results = [*filter(is_float, body.next_carries), *ys]
    uppers = [tape.add_input(each.spec) for each in results]
    found: dict[int, Array] = {}
    with session.current().record_on(tape):
        for array_, upper in zip(results, uppers, strict=True):
            before = found.get(id(array_))
            found[id(array_)] = upper if before is None else before + upper
        known, needed = dependent_calls(map(id, targets), body.calls)
        propagate(found, needed, known)
        parts = [found.get(id(each)) for each in targets]
        slots = [
            None if part is None else tape.handle_of(_as(part, each.spec))
            for part, each in zip(parts, targets, strict=True)
        ]
    inputs, outputs = [each.handle for each in uppers], [slot for slot in slots if slot is not None]
    return Repetition(tape, inputs, outputs), slots


def _strong(value: Any) -> Array:
    """An array whose dtype meets others as an array's."""
    if not isinstance(value, Array):
        return array(value)
    return value.astype(_STRONG[value.dtype]) if value.dtype in WEAK else value


def _count(inputs: Sequence[Any], length: int | None) -> int:
    sizes = {each.shape[0] if isinstance(each, Array) and each.shape else None for each in inputs}
    if length is not None:
        sizes.add(length)
    if len(sizes) != 1 or None in sizes:
        raise TensorError(
            "scan: xs are arrays of one length along their first axis; without them length is how many steps there are"
        )
    (size,) = sizes
    if type(size) is not int or size < 0:
        raise TensorError(f"scan: a length is an integer of 0 or more, not {size!r:.40}")
    return size


def _row(x: Array, at: int) -> Array:
    return record("cut", x, params=[at])


def _stacked(parts: Sequence[Array], spec: Spec) -> Array:
    dtype, shape = spec
    if not parts:
        return full((0, *shape), 0, dtype)
    return record("concatenate", *(part.reshape(1, *shape) for part in parts), params=0)


def _as(x: Array | None, spec: Spec) -> Array:
    """A gradient in the dtype and shape of what it is of; zeros where there is none."""
    dtype, shape = spec
    if x is None:
        return full(shape, 0, dtype)
    same = x if x.dtype == dtype else x.astype(dtype)
    return same if same.shape == shape else record("broadcast_to", same, params=list(shape))
