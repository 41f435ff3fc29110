"""The machine that does a program's steps with NumPy, outside the sandbox's linear memory, and a task's files as NumPy arrays."""

import ctypes
import functools
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from propeller.tensors.files import DTYPES, FORMATS, SMALL_FLOATS, TaskFiles
from propeller.tensors.machine import Files, StepMachine
from propeller.tensors.numpy_casts import from_bfloat16
from propeller.tensors.numpy_kernels import bind, bind_into
from propeller.tensors.operations import Kernel
from propeller.tensors.routine import Routine
from propeller.tensors.shapes import Spec, size_bytes

_LITTLE_ENDIAN = {
    "float32": "<f4",
    "float64": "<f8",
    "int64": "<i8",
    "uint8": "u1",
    "bool": "?",
    "uint64": "<u8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float": "<f8",
    "int": "<i8",
}
"""NumPy's names of the dtypes."""

_COLUMNS = {"f": np.float32, "i": np.int64, "b": np.bool_}
"""The dtype of a column of data, by NumPy's kind of its values."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of ``mallopt`` (mallopt(3))."""
_KEPT_BYTES, _MAPPED_BYTES = 256 << 20, 32 << 20
"""What the C library keeps of freed memory, and from which size on it has the kernel map an array by itself: its largest value."""


@functools.cache
def _keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next arrays, where it is one that gives it back to the kernel (glibc).

    A training step takes and frees the same megabytes again and again, and each page that is new to the process costs the kernel more time than NumPy
    takes to fill it: a third of a convolutional network's step.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(_TRIM_THRESHOLD, _KEPT_BYTES)
        change(_MMAP_THRESHOLD, _MAPPED_BYTES)


class NumpyMachine(StepMachine):
    """Steps in NumPy. Divisions by zero and overflows give infinities, without a warning."""

    def __init__(
        self,
        files: Files | None = None,
        *,
        max_bytes: int | None = None,
        max_handles: int = 1_000_000,
        known_routines: MutableMapping[str, Routine] | None = None,
    ) -> None:
        """As ``StepMachine``."""
        super().__init__(files, max_bytes=max_bytes, max_handles=max_handles, known_routines=known_routines)
        _keep_freed_memory()

    def run(self, tape: str) -> str:
        """As ``StepMachine.run``."""
        with np.errstate(all="ignore"):
            return super().run(tape)

    def bind(self, name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        """The NumPy function for an operation."""
        return bind(name, specs, params, out)

    def bind_into(
        self, name: str, specs: Sequence[Spec], params: Any, out: Spec, position: int
    ) -> Kernel | None:
        """The same, without new memory, for what NumPy does element by element or in a part."""
        return bind_into(name, specs, params, out, position)

    def value(self, handle: int) -> Any:
        """An array that it holds, which must not be changed."""
        return self.arrays[handle].value

    def put(self, handle: int, value: Any, spec: Spec) -> None:
        """Hold an array of this process under a new handle; whose it is may change it no more."""
        self._store(handle, value, spec, size_bytes(spec), shared=True)

    def copy(self, value: Any) -> Any:
        """A copy in C order."""
        return np.array(value)

    def pack(self, value: Any, spec: Spec) -> bytes:
        """The elements in C order."""
        return np.ascontiguousarray(value, dtype=_LITTLE_ENDIAN[spec[0]]).tobytes()

    def unpack(self, data: bytes, spec: Spec) -> Any:
        """An array over the bytes themselves."""
        if spec[0] == "bool":  # NumPy expects nothing but 0 and 1
            return (np.frombuffer(data, np.uint8) != 0).reshape(spec[1])
        return np.frombuffer(data, _LITTLE_ENDIAN[spec[0]]).reshape(spec[1])


class ArrayFiles(TaskFiles):
    """``TaskFiles`` whose tensors are arrays; the model's share the file's bytes."""

    def tensor(self, data: bytes, code: str, shape: tuple[int, ...]) -> Any:
        """An array over the bytes themselves, where its dtype is one of programs'."""
        if code == "BF16":
            array = from_bfloat16(np.frombuffer(data, "<u2"))
        elif code == "BOOL":  # NumPy expects nothing but 0 and 1
            array = np.frombuffer(data, np.uint8) != 0
        elif code in SMALL_FLOATS:
            array = np.array(SMALL_FLOATS[code], np.float32)[np.frombuffer(data, np.uint8)]
        else:
            array = np.frombuffer(data, f"<{FORMATS[code]}").astype(_LITTLE_ENDIAN[DTYPES[code]], copy=False)
        return array.reshape(shape)

    def columns(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Spec, Any]]:
        """An array for each name whose values are numbers of one shape in every sample."""
        found: dict[str, tuple[Spec, Any]] = {}
        for name in samples[0] if samples else ():
            if all(name in sample for sample in samples):
                column = _column([sample[name] for sample in samples])
                if column is not None:
                    found[name] = ((str(column.dtype), column.shape), column)
        return found


def _column(values: list[Any]) -> Any:
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        return None
    wanted = _COLUMNS.get(array.dtype.kind)
    return None if wanted is None else array.astype(wanted, copy=False)
