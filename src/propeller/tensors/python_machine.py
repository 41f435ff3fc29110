"""The machine in plain Python: a value is the flat list of its elements in C order.

float32 is rounded after each operation, as NumPy's is.
"""

import math
import struct
import sys
from array import array as _buffer
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from propeller.tensors.flat import spread
from propeller.tensors.machine import StepMachine
from propeller.tensors.python_arrays import MOVES, OTHERS
from propeller.tensors.python_elementwise import BINARY, UNARY
from propeller.tensors.routine import Kernel
from propeller.tensors.shapes import FLOAT, Spec, fits

_HALF = 1 << 63
_CODES = {"float32": "f", "float64": "d", "int64": "q", "uint8": "B", "bool": "B", "float": "d", "int": "q"}


class PythonMachine(StepMachine):
    """Steps in plain Python."""

    def bind(self, name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        """A function on flat lists."""
        kernel = _choose(name, specs, params, out)
        if name == "cast" and specs[0][0].startswith("float") and not out[0].startswith("float"):
            return lambda x: _whole(_listed(x), out[0])
        if out[0] == FLOAT or name in MOVES:
            return lambda *values: kernel(*map(_listed, values))
        return lambda *values: _rounded(kernel(*map(_listed, values)), out[0])

    def pack(self, value: Any, spec: Spec) -> bytes:
        data = _buffer(
            _CODES[spec[0]], [int(v) for v in _listed(value)] if spec[0] == "bool" else _listed(value)
        )
        if sys.byteorder == "big":
            data.byteswap()
        return data.tobytes()

    def unpack(self, data: bytes, spec: Spec) -> Any:
        values = _buffer(_CODES[spec[0]])
        values.frombytes(data)
        if sys.byteorder == "big":
            values.byteswap()
        return [bool(value) for value in values] if spec[0] == "bool" else values.tolist()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rounded(values: Iterable[Any], dtype: str) -> list[Any]:
    if dtype == "float32":
        try:
            return _buffer("f", values).tolist()
        except OverflowError:
            return [_single(value) for value in values]
    if dtype == "float64":
        return [float(value) for value in values]
    if dtype == "bool":
        return [bool(value) for value in values]
    if dtype == "uint8":
        return [int(value) & 0xFF for value in values]
    return [(int(value) + _HALF) % (2 * _HALF) - _HALF for value in values]


def _whole(values: list[Any], dtype: str) -> list[Any]:
    """Floats as integers, which no processor agrees on where they do not fit."""
    if dtype == "bool":
        return [bool(value) for value in values]
    if not all(math.isfinite(value) and fits(int(value), dtype) for value in values):
        raise ValueError(f"a value does not fit {dtype}")
    return [int(value) for value in values]


def _single(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _choose(name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Callable[..., Any]:
    if name in UNARY:
        function = UNARY[name]
        return lambda x: list(map(function, x))
    if name in BINARY:
        function = BINARY[name]
        (first, one), (second, other) = specs
        if (
            "float32" in {first, second}
            and "float64" not in {first, second}
            and "int64" not in {first, second}
        ):
            # Numbers beside float32 are float32, as in NumPy.
            return lambda x, y: list(
                map(
                    function,
                    spread(_rounded(x, "float32"), one, out[1]),
                    spread(_rounded(y, "float32"), other, out[1]),
                )
            )
        return lambda x, y: list(map(function, spread(x, one, out[1]), spread(y, other, out[1])))
    return OTHERS[name](specs, params, out)
