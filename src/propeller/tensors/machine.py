"""What does the steps of a tape: handles, quotas, and lists of steps kept for later calls. The arithmetic is a subclass's.

A tape is not trusted: every name, handle, shape and size is checked before memory is taken, and the bytes that live arrays take and the
number of handles are bounded.
"""

import json
from abc import ABC, abstractmethod
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from propeller.tensors.operations import infer
from propeller.tensors.routine import VIEWS, Kernel, Routine, compile_routine, number
from propeller.tensors.shapes import Spec, TensorError, elements, size_bytes


class QuotaError(Exception):
    """More memory or handles than a task may have; ``limit`` is the name of the limit."""

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(text)
        self.limit = limit


@dataclass(slots=True, eq=False)
class _Kept:
    """A value, what it is, and whether anything else may share its memory."""

    value: Any
    spec: Spec
    shared: bool = True


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
        self._routines: dict[int, Routine] = {}
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

    def bind_into(
        self, name: str, specs: Sequence[Spec], params: Any, out: Spec, position: int
    ) -> Kernel | None:
        """What does it into the memory of the operand at a position, which nobody needs after; None: nothing does."""
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
            QuotaError: A limit is met; nothing more can be done.
        """
        answers: list[Any] = []
        name: Any = "the tape"
        try:
            for step in json.loads(tape):
                name, result, operands, params = step
                self._step(name, result, operands, params, answers)
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

    def _step(self, name: Any, result: Any, operands: Any, params: Any, answers: list[Any]) -> None:
        self.steps_done += 1
        if name == "read":
            kept = self._array(operands[0])
            answers.append(b2a_base64(self.pack(kept.value, kept.spec), newline=False).decode())
        elif name == "describe":
            answers.append(
                {key: [dtype, list(shape)] for key, (dtype, shape) in self._contents(params).items()}
            )
        elif (special := self._special.get(name)) is not None:
            special(result, operands, params)
        else:
            given = [self._operand(each) for each in operands]
            specs = [each.spec for each in given]
            out = infer(name, specs, params)
            self._charge(size_bytes(out))
            value = self.bind(name, specs, params, out)(*[each.value for each in given])
            if view := name in VIEWS:
                given[0].shared = True
            self._keep(result, value, out, shared=view)

    # Handles and quotas ---------------------------------------------------------------------------------------

    def _array(self, handle: Any) -> _Kept:
        kept = self._arrays.get(handle) if type(handle) is int else None
        if kept is None:
            raise TensorError(f"there is no array with the handle {handle!r:.40}")
        return kept

    def _operand(self, given: Any) -> _Kept:
        return _Kept(*number(given)) if type(given) is list else self._array(given)

    def _charge(self, size: int) -> None:
        if self._most_bytes is not None and self._bytes + size > self._most_bytes:
            raise QuotaError(
                "tensor_bytes", f"{self._bytes} bytes of tensors and {size} more are over {self._most_bytes}"
            )

    def _keep(self, handle: Any, value: Any, spec: Spec, *, shared: bool) -> None:
        """Keep what has been charged for."""
        if type(handle) is not int or handle in self._arrays:
            raise TensorError(f"{handle!r:.40} is not a new handle")
        if len(self._arrays) >= self._most_handles:
            raise QuotaError("tensor_handles", f"over {self._most_handles} tensors at one time")
        self._arrays[handle] = _Kept(value, spec, shared)
        self._bytes += size_bytes(spec)

    # Steps that are not operations ----------------------------------------------------------------------------

    def _open(self, handle: Any, _operands: Any, params: Any) -> None:
        source, name = params
        spec = self._contents(source).get(name)
        if spec is None:
            raise TensorError(f"the {source} has no tensor {name!r:.80}")
        self._charge(size_bytes(spec))
        self._keep(handle, self._files and self._files.fetch(source, name), spec, shared=True)

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
        self._keep(handle, self.unpack(data, spec), spec, shared=True)

    def _free(self, _result: Any, handles: Any, _params: Any) -> None:
        for handle in handles:
            if type(handle) is not int:
                raise TensorError(f"free: {handle!r:.40} is no handle")
            # After a step that failed, a program does not know which of its arrays came to be.
            kept = self._arrays.pop(handle, None)
            if kept is not None:
                self._bytes -= size_bytes(kept.spec)

    def _save(self, _result: Any, handles: Any, names: Any) -> None:
        arrays = [self._array(handle) for handle in handles]
        if len(set(names)) != len(arrays) or not all(isinstance(name, str) for name in names):
            raise TensorError("save: one name for each array")
        if self._files is None:
            raise TensorError("save: there is nowhere to write to")
        self._files.write_update(
            {
                name: (self.pack(each.value, each.spec), each.spec)
                for name, each in zip(names, arrays, strict=True)
            }
        )

    def _contents(self, source: Any) -> dict[str, Spec]:
        return {} if self._files is None else self._files.contents(source)

    def _define(self, name: Any, _operands: Any, body: Any) -> None:
        if type(name) is not int or name in self._routines or len(self._routines) >= self._most_handles:
            raise TensorError(f"{name!r:.40} is not a new number for steps")
        self._routines[name] = compile_routine(body, self.bind, self.bind_into)

    def _call(self, results: Any, operands: Any, name: Any) -> None:
        routine = self._routines.get(name)
        if routine is None:
            raise TensorError(f"no steps are kept as {name!r:.40}")
        given = [self._operand(each) for each in operands]
        if [each.spec for each in given] != routine.inputs or len(results) != len(routine.specs):
            raise TensorError(f"the steps kept as {name} are for other arrays")
        self._charge(routine.peak_bytes)
        values = [each.value for each in given]
        for at in routine.donated:
            if given[at].shared or given.count(given[at]) > 1:
                values[at] = self.copy(values[at])
        for at in routine.escaping:
            given[at].shared = True
        made = routine.run(*values)
        self.steps_done += routine.steps
        for handle, value, spec, shared in zip(results, made, routine.specs, routine.shared, strict=True):
            self._keep(handle, value, spec, shared=shared)
