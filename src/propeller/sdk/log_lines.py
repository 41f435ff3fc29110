"""The newest lines of a service's log, as it is asked for them."""

import json
from typing import Any, NamedTuple

from propeller.sdk.connection import Connection

_TIMEOUT_S = 10.0
"""How long a service may take: of some that are asked one after the other, one may be behind a firewall."""


class LogLines(NamedTuple):
    """Some lines of a log.

    Attributes:
        lines: as they were written, oldest first.
        next: where those begin that follow.
    """

    lines: list[str]
    next: str


async def read_log(
    connection: Connection, service: str, lines: int, level: str, after: str | None
) -> LogLines:
    """Ask a service for its log.

    Args:
        connection: of the stack.
        service: its name.
        lines: how many at most: the newest, or the first that follow ``after``.
        level: the lowest.
        after: ``next`` of an answer of before.

    Raises:
        PropellerError: of the kind that the answer's status means.
    """
    params: dict[str, Any] = {"lines": lines, "level": level}
    if after is not None:
        params["after"] = after
    answer = await connection.ask("GET", service, "/logs", params=params, timeout=_TIMEOUT_S)
    return LogLines(list(answer["lines"]), str(answer["next"]))


def read_line(line: str) -> dict[str, Any]:
    """A line as a mapping; what is no log line has ``msg`` alone."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"msg": line}
