"""uvicorn's HTTP connections with limits that it does not have: on the time and the size of headers, on pauses in bodies, on how many there are.

Parts inside uvicorn (0.30 to 0.54) that it uses, to be looked at before another version is allowed: ``HttpToolsProtocol`` with the
parser's callbacks ``on_headers_complete`` and ``on_message_complete``, ``connections``, ``cycle``, ``flow.read_paused``, ``timeout_keep_alive`` with
its task and its handler.
"""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADERS_S = 10.0
"""From the first byte of a request to the end of its headers, in seconds."""

BODY_PAUSE_S = 60.0
"""The longest pause in a body, in seconds."""

MAX_HEADER_BYTES = 64 * 1024

MOST_CONNECTIONS = 4096


def max_connections() -> int:
    """How many connections an app may have: no more than half of the files that the process may open."""
    files, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, max(16, files // 2))


class HttpProtocol(HttpToolsProtocol):
    """A connection. One whose request comes too slowly is closed; where there are too many, the one that is idle longest is."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As uvicorn calls it."""
        super().__init__(*arguments, **named)
        self._in_headers, self._in_body, self._has_ended = True, False, False
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, as long as for the next one on a connection that had one."""
        if len(self.connections) >= max_connections():
            self._make_room()
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._stop_timer()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Read some of a request."""
        self._has_ended = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._last = self.loop.time()
        if self._in_headers:
            if self._has_ended:  # what is behind the request counts from the next bytes on
                return
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"the headers are over the limit of {MAX_HEADER_BYTES} bytes")
            elif self._timer is None:
                self._timer = self.loop.call_later(HEADERS_S, self._headers_late)
        elif self._in_body and self._timer is None:
            self._timer = self.loop.call_later(BODY_PAUSE_S, self._check_body)

    def on_headers_complete(self) -> None:
        """The headers of a request have come."""
        self._in_headers, self._in_body, self._header_bytes = False, True, 0
        if self._timer is not None:
            self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of a request has come."""
        self._in_headers, self._in_body, self._has_ended = True, False, True
        if self._timer is not None:
            self._stop_timer()
        super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _headers_late(self) -> None:
        if self._answering():  # the request before them, whose caller we keep waiting
            self._timer = self.loop.call_later(HEADERS_S, self._headers_late)
        else:
            self._refuse(408, f"the headers have not come within {HEADERS_S:g} s")

    def _check_body(self) -> None:
        """Close a connection on which nothing comes, though we read."""
        now, self._timer = self.loop.time(), None
        if self.flow.read_paused:
            self._last = now
        left = self._last + BODY_PAUSE_S - now
        if left <= 0:
            self._refuse(408, f"nothing more of the body has come for {BODY_PAUSE_S:g} s")
        else:
            self._timer = self.loop.call_later(left, self._check_body)

    def _refuse(self, status: int, reason: str) -> None:
        if self.transport.is_closing():
            return
        if not self._answering():
            body = f'{{"error":"{reason}"}}'.encode()
            lines = (
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
                "\r\n",
            )
            self.transport.write(STATUS_LINE[status] + "\r\n".join(lines).encode() + body)
        self.transport.close()

    def _answering(self) -> bool:
        cycle: Any = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _make_room(self) -> None:
        """Close the connection that waits longest for a request or for its headers."""
        idle = [
            one
            for one in self.connections
            if isinstance(one, HttpProtocol) and one._in_headers and not one._answering()  # noqa: SLF001 - of the same class
        ]
        if idle:
            min(idle, key=lambda one: one._last).transport.close()  # noqa: SLF001
