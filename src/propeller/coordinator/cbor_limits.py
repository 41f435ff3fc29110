"""How much a CBOR text (RFC 8949) may hold, counted before it is decoded: one byte of it can become an object of 64."""

import re

from propeller.protocol.wire import TooManyValuesError

MAX_NUMBERS = 2_000_000
MAX_OTHERS = 100_000
"""Lists, maps, texts and all else that is no number."""

_ONE = rb"(?:\xfb.{8}|\xfa.{4}|\xf9.{2}|[\x00-\x17\x20-\x37]|[\x18\x38].|[\x19\x39].{2}|[\x1a\x3a].{4}|[\x1b\x3b].{8})"
_NUMBER, _NUMBERS = re.compile(_ONE, re.DOTALL), re.compile(_ONE + rb"{1,4096}+", re.DOTALL)
_FLOATS = {0xFB: 9, 0xFA: 5}
"""The size of a float with its first byte, by that one."""

_LENGTHS = {24: 1, 25: 2, 26: 4, 27: 8}
"""The bytes of a length, by what stands in the first byte."""


def check_counts(text: bytes) -> None:
    """Refuse a text with too many items. What is malformed passes: whoever decodes it finds it.

    Raises:
        TooManyValuesError: with what to send instead.
    """
    at, numbers, others = 0, 0, 0
    while at < len(text):
        run = _NUMBERS.match(text, at)
        if run is not None:
            numbers += _count(run[0])
            at = run.end()
        else:
            major, info = text[at] >> 5, text[at] & 31
            size = _LENGTHS.get(info, 0)
            length = info if info < 24 else int.from_bytes(text[at + 1 : at + 1 + size], "big")
            at += 1 + size + (length if major in {2, 3} else 0)
            others += 1
        if numbers > MAX_NUMBERS or others > MAX_OTHERS:
            raise TooManyValuesError(
                f"more than {MAX_NUMBERS} numbers or {MAX_OTHERS} other items in CBOR are not read at once: send numbers as typed "
                "arrays (RFC 8746), or safetensors"
            )


def _count(run: bytes) -> int:
    """The numbers in a run of them."""
    size = _FLOATS.get(run[0])
    if size is not None and not run[::size].strip(run[:1]):
        return len(run) // size
    return sum(1 for _number in _NUMBER.finditer(run))
