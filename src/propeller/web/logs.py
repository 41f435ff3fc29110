"""``GET /logs`` of a service: the newest lines of its log, for those who are not on its machine."""

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast, get_args

from fastapi import Query

from propeller.errors import InvalidError, NotFoundError
from propeller.process.log_memory import MAX_LINES
from propeller.process.logs import remembered

Lines = Annotated[int, Query(ge=1, le=MAX_LINES)]
Level = Literal["debug", "info", "warning", "error"]
_AFTER = "^[0-9a-f]{1,16}-[0-9]{1,15}$"
After = Annotated[str | None, Query(pattern=_AFTER, max_length=32)]


def parse_query(query: Mapping[str, str]) -> tuple[int, Level, str | None]:
    """``lines``, ``level`` and ``after`` of a request, for an app that is not FastAPI's.

    Raises:
        InvalidError: one of them cannot be.
    """
    lines, level, after = query.get("lines", "200"), query.get("level", "debug"), query.get("after")
    if not (lines.isascii() and lines.isdigit() and len(lines) < 8 and 1 <= int(lines) <= MAX_LINES):
        raise InvalidError(f"lines: 1 to {MAX_LINES}")
    if level not in get_args(Level):
        raise InvalidError(f"level: {', '.join(get_args(Level))}")
    if after is not None and re.fullmatch(_AFTER, after) is None:
        raise InvalidError("after: the 'next' of an answer of before")
    return int(lines), cast("Level", level), after


def newest_lines(service: str, lines: int, level: Level, after: str | None) -> dict[str, Any]:
    """The answer: ``service``, ``next`` and ``lines``, oldest first.

    Raises:
        NotFoundError: the process remembers none.
    """
    memory = remembered()
    if memory is None:
        raise NotFoundError(
            "this process keeps no log in memory: it was not started by 'propeller serve' or 'up'"
        )
    found = memory.read(lines, logging.getLevelNamesMapping()[level.upper()], after)
    return {"service": service, "next": found.next, "lines": found.lines}
