"""What does the steps of a tape: handles, quotas, and lists of steps kept for later calls. The arithmetic is a subclass's.

A tape is not trusted: every name, handle, shape and size is checked before memory is taken, and the bytes that live arrays take and the
number of handles are bounded.
"""

import json
from abc import ABC, abstractmethod
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from propeller.program.tensors.shapes import FLOAT, INT, ITEM_BYTES, Spec, TensorError, elements, infer, size_bytes

WEAK = {FLOAT, INT}
Kernel = Callable[..., Any]


class QuotaError(Exception):
    """More memory or handles than a task may have; ``limit`` is the name of the limit."""

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(text)
        self.limit = limit


@dataclass
class _Kept:
    """A value and what it is."""

    value: Any
    spec: Spec


@dataclass
class _Routine:
    """Steps on slots, checked and bound once: inputs first, then one slot a step."""

    inputs: list[Spec]
    steps: list[tuple[Kernel, list[int], int, list[int]]]
    """The kernel, its slots, the slot of its result, and the slots that are not needed after."""
    constants: list[Any]
    outputs: list[int]
    specs: list[Spec]
    peak_bytes: int
    """What its results take at most at one time."""


class Files(Protocol):
    """Where the model and the data come from, and where the update goes."""

    def contents(self, source: str) -> dict[str, Spec]:
        """The tensors of a source (``model`` or ``data``)."""
        ...

    def fetch(self, source: str, name: str) -> Any:
        """A tensor that a source has."""
        ...

    def write_update(self, tensors: dict[str, tuple[bytes, Spec]]) -> None:
        """Write the update from little-endian elements."""
        ...


class StepMachine(ABC):
    """Takes tapes (see ``tape.py``) and keeps arrays by handle."""

    def __init__(
        self, files: "Files | None" = None, *, most_bytes: int | None = None, most_handles: int = 1_000_000
    ) -> None:
        """Args: files: the model, the data and the update (None: there are none); the rest are quotas."""
        self._files = files
        self._arrays: dict[int, _Kept] = {}
        self._routines: dict[int, _Routine] = {}
        self._bytes = 0
        self._most_bytes = most_bytes
        self._most_handles = most_handles
        self.steps_done = 0
        self._special = {
            "open": self._open,
            "create": self._create,
            "free": self._free,
            "define": self._define,
            "call": self._call,
            "save": self._save,
        }

    @abstractmethod
    def bind(self, name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        """What does one operation on values of these specs; the operation has been checked."""

    @abstractmethod
    def pack(self, value: Any, spec: Spec) -> bytes:
        """The little-endian elements of a value."""

    @abstractmethod
    def unpack(self, data: bytes, spec: Spec) -> Any:
        """A value of these little-endian elements."""

    def run(self, tape: str) -> str:
        """Do a tape's steps; returns the JSON list of their answers.

        Raises:
            TensorError: A step cannot be done, or is no step; those before it are done.
            QuotaError: A limit is met; nothing more can be done.
        """
        answers: list[Any] = []
        name: Any = "the tape"
        try:
            for step in json.loads(tape):
                name, result, operands, params = step
                self._step(name, result, operands, params, answers)
        except TensorError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise TensorError(f"{name!s:.40}: {type(error).__name__}: {error!s:.200}") from None
        return json.dumps(answers)

    def _step(self, name: Any, result: Any, operands: Any, params: Any, answers: list[Any]) -> None:
        self.steps_done += 1
        if name == "read":
            kept = self._array(operands[0])
            answers.append(b2a_base64(self.pack(kept.value, kept.spec), newline=False).decode())
        elif name == "describe":
            answers.append({key: [dtype, list(shape)] for key, (dtype, shape) in self._contents(params).items()})
        elif (special := self._special.get(name)) is not None:
            special(result, operands, params)
        else:
            given = [self._operand(each) for each in operands]
            specs = [each.spec for each in given]
            out = infer(name, specs, params)
            self._charge(size_bytes(out))
            value = self.bind(name, specs, params, out)(*[each.value for each in given])
            self._keep(result, value, out, charged=True)

    # Handles and quotas ---------------------------------------------------------------------------------------

    def _array(self, handle: Any) -> _Kept:
        kept = self._arrays.get(handle) if type(handle) is int else None
        if kept is None:
            raise TensorError(f"there is no array with the handle {handle!r:.40}")
        return kept

    def _operand(self, given: Any) -> _Kept:
        return _number(given) if type(given) is list else self._array(given)

    def _charge(self, size: int) -> None:
        if self._most_bytes is not None and self._bytes + size > self._most_bytes:
            raise QuotaError(
                "tensor_bytes", f"{self._bytes} bytes of tensors and {size} more are over {self._most_bytes}"
            )

    def _keep(self, handle: Any, value: Any, spec: Spec, *, charged: bool = False) -> None:
        if type(handle) is not int or handle in self._arrays:
            raise TensorError(f"{handle!r:.40} is not a new handle")
        if len(self._arrays) >= self._most_handles:
            raise QuotaError("tensor_handles", f"over {self._most_handles} tensors at one time")
        if not charged:
            self._charge(size_bytes(spec))
        self._arrays[handle] = _Kept(value, spec)
        self._bytes += size_bytes(spec)

    # Steps that are not operations ----------------------------------------------------------------------------

    def _open(self, handle: Any, _operands: Any, params: Any) -> None:
        source, name = params
        spec = self._contents(source).get(name)
        if spec is None:
            raise TensorError(f"the {source} has no tensor {name!r:.80}")
        self._charge(size_bytes(spec))
        self._keep(handle, self._files and self._files.fetch(source, name), spec, charged=True)

    def _create(self, handle: Any, _operands: Any, params: Any) -> None:
        dtype, sizes, text = params
        spec = infer("full", [], [dtype, sizes, 0])
        size = size_bytes(spec)
        self._charge(size)
        try:
            data = a2b_base64(text)
        except Base64Error:
            raise TensorError("create: the elements are not base64") from None
        if len(data) != size:
            raise TensorError(f"create: {len(data)} bytes are not {elements(spec[1])} elements of {dtype}")
        self._keep(handle, self.unpack(data, spec), spec, charged=True)

    def _free(self, _result: Any, handles: Any, _params: Any) -> None:
        for handle in handles:
            self._bytes -= size_bytes(self._array(handle).spec)
            del self._arrays[handle]

    def _save(self, _result: Any, handles: Any, names: Any) -> None:
        arrays = [self._array(handle) for handle in handles]
        if len(set(names)) != len(arrays) or not all(isinstance(name, str) for name in names):
            raise TensorError("save: one name for each array")
        if self._files is None:
            raise TensorError("save: there is nowhere to write to")
        self._files.write_update(
            {name: (self.pack(each.value, each.spec), each.spec) for name, each in zip(names, arrays, strict=True)}
        )

    def _contents(self, source: Any) -> dict[str, Spec]:
        return {} if self._files is None else self._files.contents(source)

    def _define(self, number: Any, _operands: Any, body: Any) -> None:
        if type(number) is not int or number in self._routines or len(self._routines) >= self._most_handles:
            raise TensorError(f"{number!r:.40} is not a new number for steps")
        self._routines[number] = self._compile(body)

    def _call(self, results: Any, operands: Any, number: Any) -> None:
        routine = self._routines.get(number)
        if routine is None:
            raise TensorError(f"no steps are kept as {number!r:.40}")
        given = [self._operand(each) for each in operands]
        if [each.spec for each in given] != routine.inputs or len(results) != len(routine.outputs):
            raise TensorError(f"the steps kept as {number} are for other arrays")
        self._charge(routine.peak_bytes)
        slots: list[Any] = [each.value for each in given] + routine.constants
        for kernel, places, at, dead in routine.steps:
            slots[at] = kernel(*[slots[place] for place in places])
            for place in dead:
                slots[place] = None
        self.steps_done += len(routine.steps)
        for handle, place, spec in zip(results, routine.outputs, routine.specs, strict=True):
            self._keep(handle, slots[place], spec, charged=True)

    def _compile(self, body: Any) -> _Routine:
        """Check a list of steps against its inputs' specs, and find what lives how long."""
        specs: list[Spec] = [_spec(each) for each in body["inputs"]]
        count = len(specs)
        total = count + len(body["steps"])
        constants: list[Any] = [None] * len(body["steps"])
        steps: list[tuple[Kernel, list[int], int, list[int]]] = []
        last: dict[int, int] = {}
        for at, (name, slot, operands, params) in enumerate(body["steps"]):
            if slot != count + at:
                raise TensorError("define: a step's slot is not the next one")
            places = []
            for each in operands:
                if type(each) is list:
                    number = _number(each)
                    constants.append(number.value)
                    places.append(count + len(constants) - 1)
                elif type(each) is int and 0 <= each < slot:
                    places.append(each)
                else:
                    raise TensorError(f"define: there is no slot {each!r:.40} before {slot}")
                last[places[-1]] = at
            given = [_number(each).spec if type(each) is list else specs[each] for each in operands]
            out = infer(name, given, params)
            specs.append(out)
            steps.append((self.bind(name, given, params, out), places, slot, []))
        outputs = [place for place in body["outputs"] if type(place) is int and 0 <= place < total]
        if len(outputs) != len(body["outputs"]):
            raise TensorError("define: an output is no slot")
        kept = set(outputs)
        for at, (_, _, slot, _) in enumerate(steps):
            last.setdefault(slot, at)  # a result that nobody uses
        for place, at in last.items():
            if count <= place < total and place not in kept:
                steps[at][3].append(place)
        return _Routine(
            specs[:count], steps, constants, outputs, [specs[place] for place in outputs], _peak(steps, specs)
        )


def _peak(steps: Sequence[tuple[Kernel, list[int], int, list[int]]], specs: Sequence[Spec]) -> int:
    now = most = 0
    for _, _, slot, dead in steps:
        now += size_bytes(specs[slot])
        most = max(most, now)
        now -= sum(size_bytes(specs[place]) for place in dead)
    return most


def _number(given: list[Any]) -> _Kept:
    (value,) = given
    if type(value) is bool:
        return _Kept(value, ("bool", ()))
    if type(value) is int:
        return _Kept(value, (INT, ()))
    if type(value) is float:
        return _Kept(value, (FLOAT, ()))
    raise TensorError(f"{value!r:.40} is not a number")


def _spec(given: Any) -> Spec:
    dtype, sizes = given
    if dtype not in ITEM_BYTES and dtype not in WEAK:
        raise TensorError(f"there is no dtype {dtype!r:.40}")
    return dtype, infer("full", [], ["bool", sizes, 0])[1]
