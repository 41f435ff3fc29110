"""Numbers that are NaN or infinite, which JSON does not have: where in a document one is, so that it can be named."""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

MUST_BE_FINITE = "must be a finite number, not NaN or an infinity"

Path = Sequence[str | int]
"""The keys and positions that lead to a value."""

_SCANNED_CHARACTERS = 1024 * 1024
"""The part of a text in which a number is looked for by path, which is slow."""

_NOT_FINITE = re.compile(
    r"[+-]?(nan(\(\w*\))?|inf(inity)?|1\.#(inf|ind|qnan|snan)\w*)", re.IGNORECASE
)  # as C (also Microsoft's), Go, Rust, Python and JavaScript print them
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')


def format_path(path: Path) -> str:
    """A path as people write it: ``data[3].x``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step[:80]}" if text else step[:80]
    return text or "body"


def find_word(text: str) -> tuple[Path, str] | None:
    """The path and the spelling of the first NaN or infinity that a program printed into a JSON text; ``None``: there is none."""
    path: list[str | int] = []
    key_expected = False
    for match in _TOKEN.finditer(text[:_SCANNED_CHARACTERS]):
        word = match[0]
        if word in "{[":
            path.append("" if word == "{" else 0)
            key_expected = word == "{"
        elif word in "}]":
            if not path:
                return None
            path.pop()
            key_expected = False
        elif word == ",":
            if path and isinstance(step := path[-1], int):
                path[-1] = step + 1
            key_expected = bool(path) and isinstance(path[-1], str)
        elif word[0] == '"':
            if key_expected:
                path[-1] = word[1:-1]
            key_expected = False
        elif _NOT_FINITE.fullmatch(word):
            return path, word
    return None


def find_number(value: Any, path: Path = ()) -> Path | None:
    """The path to a float that is NaN or infinite in plain values (what JSON decodes to); ``None``: there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
        with contextlib.suppress(TypeError, OverflowError):  # mixed values are looked at one by one
            if all(map(math.isfinite, value)):
                return None
    for step, item in items:
        found = find_number(item, (*path, step))
        if found is not None:
            return found
    return None


def require_finite_numbers(value: Any) -> Any:
    """Refuse plain values in which a number is NaN or infinite: they would become ``null`` on the wire."""
    found = find_number(value)
    if found is not None:
        where = f"{format_path(found)}: " if found else ""
        raise ValueError(f"{where}{MUST_BE_FINITE}")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(require_finite_numbers)]
"""A field of any JSON values by name."""
