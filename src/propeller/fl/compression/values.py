"""The forms in which numbers are sent: floating point of fewer bits, or integers with a scale for each block.

int8 and int4 are QSGD's quantisation (Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding", section 3.1, in blocks and by the largest number of each, as in their experiments): a number ``x`` of a block whose largest is ``m``
is sent as an integer ``q`` of at most ``s`` = 127 or 7 levels, the one below or above ``x / (m / s)``, drawn so that its expectation is ``x``. An error
is less than one level, ``m / s``, and a zero stays one.

float16 has a scale for each block too, a power of two, so that numbers below 6e-5 keep all 11 bits and none is too large. bfloat16 and
float32 have the range already. All three round to the nearest, of two to the even one.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.fl.compression.scheme import ValueForm
from propeller.fl.tensors.dtypes import DTYPES, Array, all_finite, name_of
from propeller.tensors.shapes import TensorError

BLOCK = 256
"""Numbers that share a scale. Of float32 this adds 1.6 % to int8 and 3.1 % to int4; blocks of 64 would lower int4's error by a
seventh (of normally distributed numbers) and add 12.5 %."""

_STORED = {
    "float32": DTYPES["F32"],
    "float16": DTYPES["F16"],
    "bfloat16": DTYPES["BF16"],
    "int8": DTYPES["I8"],
    "int4": DTYPES["U8"],
}
_LEVELS = {"int8": 127, "int4": 7}
_INT4_ZERO = 8
"""What the integer 0 is in four bits."""

_FLOAT16_BITS = 15
"""A block's largest number is scaled to below two to this power: half of what float16 holds."""

Random = np.random.Philox


def random_source(seed: int, name: str) -> Random:
    """A source of bits for a tensor: the same ones for the same seed and name, on every machine and in each version of NumPy.

    NumPy promises that of its bit generators alone, not of the distributions made from them (NEP 19).
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def has_scales(form: ValueForm) -> bool:
    """Whether numbers of this form come with a scale for each block."""
    return form == "float16" or form in _LEVELS


def stored_dtype(form: ValueForm) -> np.dtype[Any]:
    """The dtype in which numbers of this form are sent."""
    return _STORED[form]


def stored_size(form: ValueForm, count: int) -> int:
    """How many elements of that dtype hold so many numbers."""
    return (count + 1) // 2 if form == "int4" else count


def scale_count(count: int) -> int:
    """How many blocks so many numbers are."""
    return -(-count // BLOCK)


def encode_values(form: ValueForm, numbers: Array, random: Random) -> tuple[Array, Array | None]:
    """Numbers in a form, and their scales where it has any.

    Args:
        form: the form.
        numbers: finite, of float32 or float64, in one dimension; if others follow, a multiple of ``2 * BLOCK``.
        random: what stochastic rounding draws from: 32 bits a number.
    """
    if form in {"float32", "bfloat16"}:
        with np.errstate(over="ignore"):  # found by who decodes it
            return numbers.astype(_STORED[form]), None
    blocks = _in_blocks(numbers)
    most = np.abs(blocks).max(axis=1, initial=0.0)
    if form == "float16":
        least = int(np.finfo(numbers.dtype).minexp)
        exponents = np.maximum(np.frexp(most)[1] - _FLOAT16_BITS, least)
        scaled = np.ldexp(blocks, -exponents[:, None])
        scales = np.ldexp(np.ones(len(most), numbers.dtype), exponents)
        return scaled.reshape(-1)[: numbers.size].astype(np.float16), scales
    levels = _LEVELS[form]
    scales = (most / levels).astype(numbers.dtype)
    scales = np.where(scales.astype(np.float64) * levels < most, np.nextafter(scales, np.inf), scales)
    quotients = blocks / np.where(scales == 0, 1, scales).astype(np.float64)[:, None]
    quotients = quotients.reshape(-1)[: numbers.size]
    quotients += _uniform(random, numbers.size)
    integers = np.clip(np.floor(quotients, out=quotients), -levels, levels).astype(np.int8)
    return (_pack(integers) if form == "int4" else integers), scales


def decode_values(
    form: ValueForm, stored: Array, scales: Array | None, count: int, dtype: np.dtype[Any]
) -> Array:
    """The numbers again, in float32 or float64: the same ones on every machine.

    Raises:
        TensorError: what came is not of this form, or a number is not finite.
    """
    _check(form, stored, scales, count, dtype)
    if form == "int4":
        stored = _unpack(stored, count)
    numbers = stored.astype(dtype)
    if scales is not None:
        blocks = _in_blocks(numbers)
        with np.errstate(over="ignore", under="ignore"):
            numbers = (blocks * scales[:, None]).reshape(-1)[:count]
    if not all_finite(numbers):
        raise TensorError(f"has a number that is not finite, or too large for {form}")
    return numbers


def _check(form: ValueForm, stored: Array, scales: Array | None, count: int, dtype: np.dtype[Any]) -> None:
    size = stored_size(form, count)
    if stored.dtype != _STORED[form] or stored.shape != (size,):
        raise TensorError(
            f"its values are {_shown(stored)}; {count} numbers as {form} are {name_of(_STORED[form])} of shape [{size}]"
        )
    if (scales is not None) != has_scales(form):
        raise TensorError(f"{form} {'needs scales' if scales is None else 'has no scales, and some came'}")
    if scales is not None:
        if scales.dtype != dtype or scales.shape != (scale_count(count),):
            raise TensorError(
                f"its scales are {_shown(scales)}; they must be {name_of(dtype)} of shape [{scale_count(count)}]"
            )
        if not all_finite(scales) or (scales.size and scales.min() < 0):
            raise TensorError("a scale is negative or not finite")
    if form == "int8" and size and stored.min() < -_LEVELS["int8"]:
        raise TensorError("its values hold -128, which int8 does not send")
    if form == "int4" and size:
        low, high = stored & 0x0F, stored >> 4
        if min(low.min(), high.min()) == 0 or (count % 2 and high[-1] != _INT4_ZERO):
            raise TensorError("its values are not numbers of four bits from -7 to 7")


def _shown(array: Array) -> str:
    return f"{name_of(array.dtype)} of shape {list(array.shape)}"


def _in_blocks(numbers: Array) -> Array:
    """Rows of ``BLOCK`` numbers, the last one filled up with zeros."""
    missing = -numbers.size % BLOCK
    if missing:
        numbers = np.concatenate([numbers, np.zeros(missing, numbers.dtype)])
    return numbers.reshape(-1, BLOCK)


def _uniform(random: Random, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), a multiple of 2**-32 each."""
    bits: npt.NDArray[np.uint64] = random.random_raw((count + 1) // 2)
    return bits.astype("<u8", copy=False).view("<u4")[:count] * 2.0**-32


def _pack(integers: Array) -> Array:
    """Two integers a byte, the first in the lower half."""
    halves = (integers + _INT4_ZERO).astype(np.uint8)
    if halves.size % 2:
        halves = np.append(halves, np.uint8(_INT4_ZERO))
    packed: Array = halves[0::2] | (halves[1::2] << 4)
    return packed


def _unpack(packed: Array, count: int) -> Array:
    halves = np.empty(2 * packed.size, np.int8)
    halves[0::2], halves[1::2] = packed & 0x0F, packed >> 4
    return halves[:count] - np.int8(_INT4_ZERO)
