"""The machine in plain Python, for runtimes without the host's tensors: correct, and slow.

A value is the flat list of its elements in C order. float32 is rounded after each operation, as NumPy's is.
"""

from collections.abc import Sequence
from typing import Any

from propeller.tensors.encoding import decode, encode
from propeller.tensors.machine import StepMachine
from propeller.tensors.operations import OPERATIONS, Kernel
from propeller.tensors.operations.flat import rounded
from propeller.tensors.shapes import FLOAT, Spec


class PythonMachine(StepMachine):
    """Steps in plain Python."""

    def bind(self, name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        """A function on flat lists."""
        operation = OPERATIONS[name]
        kernel = operation.kernel(specs, params, out)
        if out[0] == FLOAT or operation.moves:
            return lambda *values: kernel(*map(_listed, values))
        return lambda *values: rounded(kernel(*map(_listed, values)), out[0])

    def pack(self, value: Any, spec: Spec) -> bytes:
        """The little-endian elements of a list."""
        return encode(_listed(value), spec[0])

    def unpack(self, data: bytes, spec: Spec) -> Any:
        """A list of these little-endian elements."""
        return list(decode(data, spec[0]))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
