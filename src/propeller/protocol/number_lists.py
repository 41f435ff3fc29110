"""Lists of numbers in JSON that are too long for an object each: cut out of a text, and read by pieces.

``{"w": [[0.1, 0.2], [0.3, 0.4]]}`` becomes ``{"w": "mark"}`` and the numbers of the mark. A piece is at most 64 KiB: whoever does this in a
thread holds the interpreter no longer than that takes, and of the numbers nothing is in memory but their 8 bytes.
"""

import array
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from propeller.tensors.shapes import MAX_RANK

_SHORTEST = 32
"""Bytes between two texts from which on it is looked whether they are a list of numbers."""

_PIECE = 64 * 1024

_WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")
_AS_ZERO = bytes.maketrans(b"123456789+-.eE", b"0" * 14)
_SPACES = b" \t\r\n"

_EXACT = 2.0**53
"""Integers below this are exact in float64 (RFC 8259, section 6)."""


@dataclass(frozen=True)
class NumberList:
    """Numbers in nested lists of equal lengths.

    Attributes:
        shape: the lengths, from the outer list to the inner ones.
        numbers: all of them, in order, as float64; integers are exact.
    """

    shape: tuple[int, ...]
    numbers: "array.array[float]"


@dataclass(frozen=True)
class CutList:
    """A list that was cut out of a text.

    Attributes:
        numbers: as they were read.
        text: of the list.
    """

    numbers: NumberList
    text: memoryview


def cut_number_lists(text: bytes) -> tuple[bytes, dict[str, CutList]]:
    """A JSON text with a mark in the place of each long list of numbers, and the lists by their marks.

    What is no list of finite numbers, of equal lengths and without integers that float64 does not hold, stays where it is.
    """
    mark = secrets.token_hex(8)  # none that a sender could have written
    kept: list[bytes] = []
    lists: dict[str, CutList] = {}
    done = 0
    for start, end in outside_texts(text):
        if end - start < _SHORTEST:
            continue
        first = text.find(b"[", start, end)
        object_end = text.find(b"}", max(first, start), end)
        last = text.rfind(b"]", start, end if object_end < 0 else object_end)
        found = _read(text, first, last + 1) if 0 <= first < last else None
        if found is not None:
            name = f"{mark}{len(lists)}"
            lists[name] = CutList(found, memoryview(text)[first : last + 1])
            kept += [text[done:first], b'"', name.encode(), b'"']
            done = last + 1
    kept.append(text[done:])
    return b"".join(kept), lists


def restore(value: Any, give: Callable[[str], Any]) -> Any:
    """What was decoded, with what ``give`` has for each text: that text, or what a mark stands for."""
    if isinstance(value, str):
        return give(value)
    if isinstance(value, list):
        return [restore(item, give) for item in value]
    if isinstance(value, dict):
        return {name: restore(item, give) for name, item in value.items()}
    return value


def outside_texts(text: bytes) -> Iterator[tuple[int, int]]:
    """The stretches of a JSON text between its texts in quotes: from where to where, also empty ones."""
    at = 0
    while True:
        quote = text.find(b'"', at)
        yield at, len(text) if quote < 0 else quote
        if quote < 0 or (at := _end_of_text(text, quote + 1)) < 0:
            return


def _end_of_text(text: bytes, at: int) -> int:
    """The place behind the quote that ends a text which begins here; -1: there is none."""
    while (quote := text.find(b'"', at)) >= 0:
        before = quote
        while before > at and text[before - 1] == 0x5C:
            before -= 1
        if (quote - before) % 2 == 0:
            return quote + 1
        at = quote + 1
    return -1


def _read(text: bytes, first: int, end: int) -> NumberList | None:
    """The list from here to there; ``None`` if it is not one."""
    numbers, structure = array.array("d"), bytearray()
    at = first
    while at < end:
        comma = text.find(b",", at + _PIECE, end)
        piece = text[at : comma if comma >= 0 else end]
        outline = piece.translate(_AS_ZERO, _SPACES)
        # A number before an opening bracket, or behind a closing one, without a comma.
        if len(piece) > 2 * _PIECE or b"0[" in outline or b"]0" in outline:
            return None
        read = _read_numbers(piece.translate(_WITHOUT_BRACKETS))
        if read is None:
            return None
        numbers.extend(read)
        structure += outline.translate(None, b"0")
        if comma < 0:
            break
        structure += b","
        at = comma + 1
    shape = _shape(structure)
    return NumberList(shape, numbers) if shape and math.prod(shape) == len(numbers) else None


def _read_numbers(piece: bytes) -> "array.array[float] | None":
    from pydantic_core import from_json  # not where lists are only passed on

    try:
        values = from_json(b"[%b]" % piece, allow_inf_nan=False)
        read = array.array("d", values)
    except (ValueError, TypeError, OverflowError):
        return None
    if not read:
        return None
    most, least = max(read), min(read)
    if max(most, -least) >= _EXACT and (
        not math.isfinite(most - least) or any(type(value) is int for value in values)
    ):
        return None
    return read


def _shape(structure: bytearray) -> tuple[int, ...] | None:
    """The lengths of nested lists, from their brackets and commas; ``None`` if those of one depth differ."""
    rank = len(structure) - len(structure.lstrip(b"["))
    if not 0 < rank <= MAX_RANK:
        return None
    lengths: list[int] = []
    block = b""
    for depth in range(1, rank + 1):  # from the innermost lists to the whole
        begin = rank - depth
        closing = structure.find(b"]" * depth, begin)
        if closing < 0:
            return None
        size = closing + depth - begin
        inner = size - 2  # without this list's own brackets
        length = inner + 1 if depth == 1 else (inner + 1) // (len(block) + 1)
        if size != 1 + length * (len(block) + 1):
            return None
        block = b"[" + (block + b",") * (length - 1) + block + b"]"
        lengths.append(length)
    return tuple(reversed(lengths)) if structure == block else None
