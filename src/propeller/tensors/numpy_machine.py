"""The machine that does a program's tensor steps with NumPy, outside the sandbox's linear memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_files import LITTLE
from propeller.tensors.numpy_kernels import bind, bind_into
from propeller.tensors.routine import WEAK, Kernel
from propeller.tensors.shapes import Spec


class NumpyMachine(StepMachine):
    """Steps in NumPy. Divisions by zero and overflows give infinities, without a word."""

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
        """The same, without new memory, for what NumPy does element by element."""
        del params  # none of them has any
        return bind_into(name, specs, out, position)

    def copy(self, value: Any) -> Any:
        """A copy in C order."""
        return np.array(value)

    def pack(self, value: Any, spec: Spec) -> bytes:
        """The elements in C order."""
        dtype = spec[0]
        little = LITTLE["float64" if dtype == "float" else "int64"] if dtype in WEAK else LITTLE[dtype]
        return np.ascontiguousarray(value, dtype=little).tobytes()

    def unpack(self, data: bytes, spec: Spec) -> Any:
        """An array over the bytes themselves."""
        if spec[0] == "bool":  # NumPy reckons with nothing but 0 and 1
            return (np.frombuffer(data, np.uint8) != 0).reshape(spec[1])
        return np.frombuffer(data, LITTLE[spec[0]]).reshape(spec[1])
