"""Does the steps of a tape: handles, quotas, and lists of steps kept for later calls. The arithmetic is a subclass's.

A tape is not trusted: every name, handle, shape and size is checked before memory is taken, and the bytes that live arrays take and the
number of handles are bounded.
"""

import json
from abc import ABC, abstractmethod
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from propeller.errors import PropellerError
from propeller.tensors.operations import OPERATIONS, Kernel, infer
from propeller.tensors.routine import Routine, compile_routine, parse_number
from propeller.tensors.shapes import Spec, TensorError, elements, size_bytes


class QuotaError(PropellerError):
    """More memory or handles than a task may have; ``limit`` is the name of the limit."""

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(text)
        self.limit = limit


@dataclass(slots=True, eq=False)
class Operand:
    """A value, its spec, and whether anything else may share its memory."""

    value: Any
    spec: Spec
    shared: bool = True
    size: int = 0
    """Bytes, of an array that is held."""


class Files(Protocol):
    """Where the model, the data and other tensors come from, and where results go."""

    def contents(self, source: str) -> dict[str, Spec]:
        """The tensors of a source (``model``, ``data``, …)."""
        ...

    def fetch(self, source: str, name: str) -> Any:
        """A tensor that a source has."""
        ...

    def write(self, result: str, tensors: dict[str, tuple[bytes, Spec]]) -> None:
        """Write a result, such as the ``update``, from little-endian elements."""
        ...


class StepMachine(ABC):
    """Takes tapes (see ``tape.py``) and keeps arrays by handle.

    Attributes:
        arrays: what it holds, by handle.
        held_bytes: what these take.
        steps_done: how many steps it has done, those of called routines among them.
        control_steps: the steps that are no operations, by name.
    """

    def __init__(
        self,
        files: Files | None = None,
        *,
        max_bytes: int | None = None,
        max_handles: int = 1_000_000,
        known_routines: MutableMapping[str, Routine] | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            files: the model, the data and the update; None: there are none.
            max_bytes: a quota.
            max_handles: a quota.
            known_routines: kept steps by their text, of machines of this class: they are the same whoever sends them, and to make
                them ready takes longer than to do them on little data.
        """
        self._files, self._known_routines = files, known_routines
        self._routines: dict[int, Routine] = {}
        self._max_bytes = max_bytes
        self._max_handles = max_handles
        self.arrays: dict[int, Operand] = {}
        self.held_bytes = 0
        self.steps_done = 0
        self.control_steps = {
            "open": self._open,
            "create": self._create,
            "free": self._free,
            "read": self._read,
            "describe": self._describe,
            "save": self._save,
            "define": self._define,
            "call": self._call,
        }

    @abstractmethod
    def bind(self, name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        """The kernel of one operation on values of these specs; the operation has been checked."""

    def bind_into(
        self, name: str, specs: Sequence[Spec], params: Any, out: Spec, position: int
    ) -> Kernel | None:
        """A kernel that writes over the operand at a position, which nobody needs afterwards; None: there is none."""
        del name, specs, params, out, position
        return None

    def copy(self, value: Any) -> Any:
        """A value with memory of its own."""
        return value

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
            QuotaError: A limit is reached; nothing more can be done.
        """
        answers: list[Any] = []
        name: Any = "the tape"
        try:
            for step in json.loads(tape):
                name, result, operands, params = step
                self._do(name, result, operands, params, answers)
        except TensorError as error:
            raise TensorError(f"{error!s:.500}") from None
        except OSError as error:
            raise TensorError(f"{name!s:.40}: {error.strerror}") from None
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise TensorError(f"{name!s:.40}: {type(error).__name__}: {error!s:.200}") from None
        return json.dumps(answers)

    def _do(self, name: Any, result: Any, operands: Any, params: Any, answers: list[Any]) -> None:
        self.steps_done += 1
        if (control := self.control_steps.get(name)) is not None:
            answer = control(result, operands, params)
            if answer is not None:
                answers.append(answer)
            return
        inputs = [self._operand(each) for each in operands]
        specs = [each.spec for each in inputs]
        out = infer(name, specs, params)
        size = size_bytes(out)
        self._check_room(size)
        value = self.bind(name, specs, params, out)(*[each.value for each in inputs])
        if view := OPERATIONS[name].view:
            inputs[0].shared = True
        self._store(result, value, out, size, shared=view)

    # Handles and quotas ---------------------------------------------------------------------------------------

    def _array(self, handle: Any) -> Operand:
        array = self.arrays.get(handle) if type(handle) is int else None
        if array is None:
            raise TensorError(f"there is no array with the handle {handle!r:.40}")
        return array

    def _operand(self, operand: Any) -> Operand:
        return Operand(*parse_number(operand)) if type(operand) is list else self._array(operand)

    def _check_room(self, size: int) -> None:
        if self._max_bytes is not None and self.held_bytes + size > self._max_bytes:
            raise QuotaError(
                "tensor_bytes",
                f"{self.held_bytes} bytes of tensors and {size} more are over {self._max_bytes}",
            )

    def _store(self, handle: Any, value: Any, spec: Spec, size: int, *, shared: bool) -> None:
        """Keep a value for which there is room."""
        if type(handle) is not int or handle in self.arrays:
            raise TensorError(f"{handle!r:.40} is not a new handle")
        if len(self.arrays) >= self._max_handles:
            raise QuotaError("tensor_handles", f"over {self._max_handles} tensors at one time")
        self.arrays[handle] = Operand(value, spec, shared, size)
        self.held_bytes += size

    # Steps that are not operations ----------------------------------------------------------------------------

    def _open(self, handle: Any, _operands: Any, params: Any) -> None:
        source, name = params
        spec = self._contents(source).get(name)
        if spec is None:
            raise TensorError(f"the {source} has no tensor {name!r:.80}")
        size = size_bytes(spec)
        self._check_room(size)
        self._store(handle, self._files and self._files.fetch(source, name), spec, size, shared=True)

    def _create(self, handle: Any, _operands: Any, params: Any) -> None:
        dtype, sizes, text = params
        spec = infer("full", [], [dtype, sizes, 0])
        size = size_bytes(spec)
        self._check_room(size)
        try:
            data = a2b_base64(text)
        except Base64Error:
            raise TensorError("create: the elements are not base64") from None
        if len(data) != size:
            raise TensorError(f"create: {len(data)} bytes are not {elements(spec[1])} elements of {dtype}")
        self._store(handle, self.unpack(data, spec), spec, size, shared=True)

    def _free(self, _result: Any, handles: Any, _params: Any) -> None:
        for handle in handles:
            if type(handle) is not int:
                raise TensorError(f"free: {handle!r:.40} is no handle")
            # After a step that failed, a program does not know which of its arrays came to be.
            array = self.arrays.pop(handle, None)
            if array is not None:
                self.held_bytes -= array.size

    def _read(self, _result: Any, handles: Any, _params: Any) -> str:
        array = self._array(handles[0])
        return b2a_base64(self.pack(array.value, array.spec), newline=False).decode()

    def _describe(self, _result: Any, _operands: Any, source: Any) -> dict[str, Any]:
        return {name: [dtype, list(shape)] for name, (dtype, shape) in self._contents(source).items()}

    def _save(self, result: Any, handles: Any, names: Any) -> None:
        arrays = [self._array(handle) for handle in handles]
        if len(set(names)) != len(arrays) or not all(isinstance(name, str) for name in names):
            raise TensorError("save: one name for each array")
        if self._files is None:
            raise TensorError("save: there is nowhere to write to")
        self._files.write(
            "update" if result is None else result,
            {
                name: (self.pack(each.value, each.spec), each.spec)
                for name, each in zip(names, arrays, strict=True)
            },
        )

    def _contents(self, source: Any) -> dict[str, Spec]:
        return {} if self._files is None else self._files.contents(source)

    def _define(self, number: Any, _operands: Any, body: Any) -> None:
        if type(number) is not int or number in self._routines or len(self._routines) >= self._max_handles:
            raise TensorError(f"{number!r:.40} is not a new number for steps")
        self._routines[number] = self._prepare(body)

    def _prepare(self, body: Any) -> Routine:
        known = self._known_routines
        text = "" if known is None else json.dumps(body)
        if known is not None and text in known:
            return known[text]
        routine = compile_routine(body, self.bind, self.bind_into)
        if known is not None:
            known[text] = routine
        return routine

    def _call(self, results: Any, operands: Any, number: Any) -> None:
        routine = self._routines.get(number)
        if routine is None:
            raise TensorError(f"no steps are kept as {number!r:.40}")
        inputs = [self._operand(each) for each in operands]
        if [each.spec for each in inputs] != routine.inputs or len(results) != len(routine.specs):
            raise TensorError(f"the steps kept as {number} are for other arrays")
        self._check_room(routine.peak_bytes)
        values = [each.value for each in inputs]
        for at in routine.donated:
            if inputs[at].shared or inputs.count(inputs[at]) > 1:
                values[at] = self.copy(values[at])
        for at in routine.escaping:
            inputs[at].shared = True
        outputs = routine.run(*values)
        self.steps_done += routine.steps
        for handle, value, spec, size, shared in zip(
            results, outputs, routine.specs, routine.sizes, routine.shared, strict=True
        ):
            self._store(handle, value, spec, size, shared=shared)
