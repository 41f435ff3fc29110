"""A long list in a JSON object, read some items at a time: whoever does this in a thread holds the interpreter for milliseconds."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from propeller.protocol.finite import find_number, format_path
from propeller.protocol.number_lists import outside_texts
from propeller.protocol.wire import NonFiniteNumberError

_PIECE = 64 * 1024

_MAX_TRIES = 16
"""Places at which a piece may seem to end and does not."""

_ENDS = {
    b"{": (re.compile(rb"\}\s*,"), re.compile(rb"\}\s*\]")),
    b"[": (re.compile(rb"\]\s*,"), re.compile(rb"\]\s*\]")),
}
"""By the first byte of an item: what ends an item before another, and the last one with the list."""

_PLAIN_ENDS = (re.compile(rb","), re.compile(rb"\]"))
_SPACE = b" \t\r\n"


class NoSuchListError(ValueError):
    """The text has no such list, or none that can be read in pieces: whoever decodes all of it finds what is wrong."""


def find_list(text: bytes, name: str) -> int:
    """Where the items of an object's list begin, behind its bracket.

    Raises:
        NoSuchListError: there is no such list.
    """
    quoted, depth, before = f'"{name}"'.encode(), 0, 0
    for start, end in outside_texts(text):
        if depth == 1 and text[before:start] == quoted:
            after = text[start:end].lstrip(_SPACE)
            value = after[1:].lstrip(_SPACE)
            if after[:1] == b":" and value[:1] == b"[":
                return text.index(b"[", start) + 1
        depth += sum(text.count(one, start, end) for one in (b"{", b"["))
        depth -= sum(text.count(one, start, end) for one in (b"}", b"]"))
        before = end
    raise NoSuchListError(name)


def read_items(text: bytes, name: str, at: int) -> Iterator[tuple[list[Any], int]]:
    """The items of a list that begin here: some of them, and the place behind these; behind the last ones, that of its bracket.

    Raises:
        NoSuchListError: it is no JSON.
        NonFiniteNumberError: a number is too large.
    """
    count = 0
    while True:
        items, end = _read_piece(text, at)
        is_last = text[end : end + 1] == b"]"
        if not items and (count or not is_last):
            raise NoSuchListError(text[at : at + 40])
        path = find_number(items)
        if path is not None:
            path = (name, count + int(path[0]), *path[1:])
            raise NonFiniteNumberError(f"{format_path(path)}: a number is too large", path, math.inf)
        yield items, end
        if is_last:
            return
        count += len(items)
        at = end + 1


def _read_piece(text: bytes, at: int) -> tuple[list[Any], int]:
    """The items up to a comma between two of them, or to the end of the list."""
    first = text[at : at + 4096].lstrip(_SPACE)[:1]
    between, last = _ENDS.get(first, _PLAIN_ENDS)
    # What is a list when it is put into brackets ends between two items: the list's own end would close it too early.
    for pattern, begin, end in (
        (between, at + _PIECE, len(text)),
        (last, at, len(text)),
        (between, at, len(text)),
    ):
        for match in itertools.islice(pattern.finditer(text, begin, end), _MAX_TRIES):
            stop = match.end() - 1
            with contextlib.suppress(ValueError):
                return from_json(b"[%b]" % text[at:stop], allow_inf_nan=False), stop
    raise NoSuchListError(text[at : at + 40])
