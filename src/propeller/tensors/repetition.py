"""Operations that are recorded once and then repeated with other operands, by whoever records them."""

from collections.abc import Callable, Sequence
from typing import Any

from propeller.tensors import session
from propeller.tensors.array import Array
from propeller.tensors.operations import OperationCall
from propeller.tensors.shapes import Spec, TensorError
from propeller.tensors.tape import Handle, Tape, needed_steps

Frame = Sequence[Any]
"""The arrays of one repetition, by their slots."""


class BodyTape(Tape):
    """The tape of what is repeated: its handles are slots, and arrays from outside get one when they are met.

    Attributes:
        specs: of the results, by their slots.
        captured: arrays from outside and their slots, by the arrays' identities.
    """

    def __init__(self) -> None:
        super().__init__()
        self.specs: dict[int, Spec] = {}
        self.captured: dict[int, tuple[Array, int]] = {}

    def add_input(self, spec: Spec) -> Array:
        """What stands for another array at each repetition."""
        return Array(self, self.new_handle(), spec)

    def record(self, name: str, operands: Sequence[Any], params: Any = None) -> tuple[int, Spec]:
        """As ``Tape.record``, and keep the result's spec."""
        slot, spec = super().record(name, operands, params)
        self.specs[slot] = spec
        return slot, spec

    def handle_of(self, value: Handle) -> int:
        """The slot of an array."""
        if value.tape is self:
            return value.handle
        known = self.captured.get(id(value))
        if known is None:
            if not isinstance(value, Array):
                return super().handle_of(value)
            known = self.captured[id(value)] = value, self.new_handle()
        return known[1]

    def adopt(self, value: Handle) -> None:
        """An array is about to be changed in place: only one that was made here may be."""
        if value.tape is not self:
            raise TensorError(
                "scan: its function must not change arrays from outside in place: make them a part of the carry"
            )


class Repetition:
    """The steps of a tape, with other arrays in the place of its inputs each time."""

    def __init__(self, tape: BodyTape, inputs: Sequence[int], outputs: Sequence[int] | None = None) -> None:
        """Args: tape: has the steps; inputs: slots; outputs: what is needed of the results (None: all)."""
        self._tape, self._inputs = tape, inputs
        self._steps = tape.steps if outputs is None else needed_steps(tape.steps, outputs)
        self._size = tape.new_handle()

    @property
    def captured(self) -> list[Array]:
        """The arrays from outside that the steps use."""
        return [array for array, _ in self._tape.captured.values()]

    def repeat(self, given: Sequence[Array], outside: Callable[[Array], Array] | None = None) -> Frame:
        """Record the steps on the current tape.

        Args:
            given: An array for each input.
            outside: What to take for an array from outside; None: itself.
        """
        tape = session.current().tape
        frame: list[Any] = [None] * self._size
        for slot, array in zip(self._inputs, given, strict=True):
            frame[slot] = array
        for array, slot in self._tape.captured.values():
            frame[slot] = array if outside is None else outside(array)
        handles = [array if array is None else tape.handle_of(array) for array in frame]
        specs = self._tape.specs
        known = tape.specs if isinstance(tape, BodyTape) else None
        for name, slot, operands, params in self._steps:
            encoded = [each if type(each) is list else handles[each] for each in operands]
            handle = handles[slot] = tape.append(name, encoded, params)
            frame[slot] = Array(tape, handle, specs[slot])
            if known is not None:
                known[handle] = specs[slot]
        return frame

    def calls(self, frame: Frame) -> list[OperationCall]:
        """The operations of a repetition, as gradients of gradients take them."""
        return [
            OperationCall(
                name,
                [each[0] if type(each) is list else frame[each] for each in operands],
                params,
                frame[slot],
            )
            for name, slot, operands, params in self._steps
        ]
