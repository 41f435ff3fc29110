"""Small servers for tests: an HTTP server that records its requests, and one that never answers."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class RecordingServer:
    """An HTTP server that answers with ``answer(path, authorization)`` and records both of every request in ``seen``."""

    def __init__(self, answer: Callable[[str, str | None], Answer]) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self._answer = answer
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def host(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> "Iterator[RecordingServer]":
        """Serve for the length of the block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(server: "RecordingServer") -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                authorization = self.headers.get("authorization")
                server.seen.append((self.path, authorization))
                status, headers, body = server._answer(self.path, authorization)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *_arguments: object) -> None:
                pass

        return Handler


@contextlib.contextmanager
def open_silent_server() -> Iterator[str]:
    """The host and port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
