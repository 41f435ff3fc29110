"""Which requests go into the audit log: those by which people and scripts change something or are shown keys, and those that are refused."""

import asyncio
import time
from collections.abc import Callable

from cachetools import LRUCache
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from propeller.errors import NotFoundError
from propeller.process.allowance import Allowance, caller_at
from propeller.process.audit import AuditLog, collecting, read_log
from propeller.protocol.roles import PEOPLE
from propeller.web.auth import Principal

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSED = frozenset({401, 403})
_FAILED = 400

REFUSED_BURST, REFUSED_A_SECOND = 20, 0.1
"""Entries of refused requests from one address, and of failed ones of whom nobody knows: so many at once, and as they come back; what is
more is counted in the next one."""

_MAX_ADDRESSES = 1000

Audited = Callable[[str, str], bool]
"""Whether requests of a method and path are worth an entry."""


def all_paths(_method: str, _path: str) -> bool:
    """All are."""
    return True


HEAD_HEADER = "propeller-audit-head"
"""Of an answer: the number and the hash of the newest entry, which may be noted elsewhere."""

MAX_ENTRIES = 10_000
"""In an answer."""


async def entries_after(log: AuditLog | None, after: int, limit: int) -> Response:
    """The entries after one, as JSON lines.

    Raises:
        NotFoundError: there is no log.
    """
    if log is None:
        raise NotFoundError("this service keeps no audit log: set PROPELLER_AUDIT_LOG to a file")
    head = log.head
    lines = await asyncio.to_thread(read_log, log.file, after, limit)
    return Response(b"".join(lines), headers={HEAD_HEADER: str(head)}, media_type="application/x-ndjson")


class AuditMiddleware:
    """ASGI middleware: adds an entry before the answer goes out. What machines may do is in the rounds, and not here."""

    def __init__(self, app: ASGIApp, log: AuditLog, audited: Audited = all_paths) -> None:
        self.app, self._log, self._audited = app, log, audited
        self._refused: LRUCache[str, Allowance] = LRUCache(_MAX_ADDRESSES)
        self._untold = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add its entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with collecting() as facts:

            async def send_and_record(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._record(scope, int(message["status"]), facts)
                await send(message)

            await self.app(scope, receive, send_and_record)

    def _record(self, scope: Scope, status: int, facts: dict[str, object]) -> None:
        who: Principal | None = scope.get("state", {}).get("principal")
        address = str((scope.get("client") or ("",))[0])
        method, path = scope["method"], scope["path"]
        if not self._audited(method, path):
            return
        is_refused = status in _REFUSED
        is_change = method not in _SAFE and (who is None or who.role in PEOPLE or who.kind == "user")
        is_noted = method in _SAFE and bool(facts)  # reading it is worth an entry, as that of keys
        if not (is_refused or is_change or is_noted):
            return
        is_unknown = who is None or who.kind == "anyone"
        # Whoever reaches the service can send requests that fail, and is to fill no disk with them.
        if (is_refused or (is_unknown and status >= _FAILED)) and not self._may_tell(address):
            self._untold += 1
            return
        if self._untold:
            facts = {**facts, "refused_and_not_told_of": self._untold}
            self._untold = 0
        self._log.record(
            f"{method} {path}",
            who={"kind": "unknown"}
            if who is None
            else {name: value for name, value in who.told().items() if value},
            address=address,
            status=status,
            about=facts,
        )

    def _may_tell(self, address: str) -> bool:
        now = time.monotonic()
        caller = caller_at(address)
        left = self._refused.get(caller)
        if left is None:
            left = self._refused[caller] = Allowance.full(REFUSED_A_SECOND, REFUSED_BURST, now)
        return left.take(1, now)
