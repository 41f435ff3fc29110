"""``GET /logs`` of a service: the newest lines of its log, for those who are not on its machine."""

import logging
from typing import Annotated, Any, Literal

from fastapi import Query

from propeller.errors import NotFoundError
from propeller.process.log_memory import MAX_LINES
from propeller.process.logs import remembered

Lines = Annotated[int, Query(ge=1, le=MAX_LINES)]
Level = Literal["debug", "info", "warning", "error"]
After = Annotated[str | None, Query(pattern="^[0-9a-f]{1,16}-[0-9]{1,15}$", max_length=32)]


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
