"""What the services of a stack have written: their logs and audit logs."""

import json
from typing import Any, NamedTuple

from propeller.errors import InvalidError
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


class AsyncLogs:
    """The logs of a stack's services: what ``AsyncPropeller`` can read of them."""

    _connection: Connection

    async def audit(self, service: str, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Entries of a service's audit log, oldest first: who did what, from where, with what result. For operators and admins.

        Args:
            service: ``manager``, ``coordinator``, ``model_registry``, ``data_store`` or ``identity``.
            after: the number (``seq``) of an entry: those that follow it are given.
            limit: how many at most; 1 to 10,000.

        Raises:
            InvalidError: there is no such service.
            NotFoundError: it keeps no audit log.
        """
        lines = await self.audit_lines(service, after=after, limit=limit)
        return [json.loads(line) for line in lines]

    async def audit_lines(self, service: str, *, after: int = 0, limit: int = 1000) -> list[bytes]:
        """As ``audit``, but the lines as they were written, whose hashes can be verified (``propeller audit verify``)."""
        self._check_service(service)
        answer = await self._connection.send(
            "GET", service, "/audit", params={"after": after, "limit": limit}
        )
        return answer.content.splitlines(keepends=True)

    async def logs(self, service: str, *, lines: int = 200, level: str = "debug") -> list[dict[str, Any]]:
        """The newest lines of a service's log, oldest first: ``time``, ``level``, ``msg`` and what each has beside. For operators and admins.

        What is no log line, as a part of a traceback, has ``msg`` alone.

        Args:
            service: ``manager``, ``coordinator``, ``model_registry``, ``data_store`` or ``identity``; or ``aggregator``, ``proxy`` or
                ``oci_registry``, where their addresses are known.
            lines: how many; 1 to 2,000, which is all that a service remembers.
            level: ``debug``, ``info``, ``warning`` or ``error``: lines of this level and above.

        Raises:
            InvalidError: there is no such service or level.
        """
        found = await self.log_lines(service, lines=lines, level=level)
        return [_read_line(line) for line in found.lines]

    async def log_lines(
        self, service: str, *, lines: int = 200, level: str = "debug", after: str | None = None
    ) -> LogLines:
        """As ``logs``, but as they were written; ``after`` is ``next`` of an answer of before, which the lines then follow."""
        self._check_service(service)
        params: dict[str, Any] = {"lines": lines, "level": level}
        if after is not None:
            params["after"] = after
        answer = await self._connection.ask("GET", service, "/logs", params=params, timeout=_TIMEOUT_S)
        return LogLines(list(answer["lines"]), str(answer["next"]))

    def _check_service(self, service: str) -> None:
        if service not in self._connection.urls:
            raise InvalidError(f"service: {service!r} is none of {', '.join(self._connection.urls)}")


def _read_line(line: str) -> dict[str, Any]:
    """A line as a mapping; what is no log line has ``msg`` alone."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"msg": line}
