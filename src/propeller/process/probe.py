"""``python -m propeller.process.probe TARGET…``: whether a service works, for the health check of its container.

Exit code 0 if every target does; else 1, and a line on standard output for each that does not. The targets:

- ``http://host:port/path`` answers with 200;
- ``tcp://host:port`` accepts a connection;
- ``nats://host:port`` greets as a nats-server does, which a listening socket of a process that hangs would not;
- ``file:/path`` holds a time, in seconds since 1970, that has not come yet (a proplet's ``heartbeat``).

The standard library only, and little of it: it runs every few seconds.
"""

import http.client
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

TIMEOUT_S = 4.0
"""How long a target may take, in seconds."""


class NotWellError(Exception):
    """A target does not work; the text says how it failed."""


def probe(target: str) -> None:
    """Ask one target.

    Raises:
        NotWellError: it does not work.
    """
    url = urlsplit(target)
    ask = _KINDS.get(url.scheme)
    if ask is None:
        raise NotWellError(f"not a target; write one of {', '.join(f'{kind}:…' for kind in _KINDS)}")
    try:
        ask(url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotWellError(str(error) or type(error).__name__) from None


def _http(url: SplitResult) -> None:
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", url.path or "/")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != http.client.OK:
        raise NotWellError(f"answers with {status}")


def _tcp(url: SplitResult) -> None:
    socket.create_connection((url.hostname, url.port or 0), TIMEOUT_S).close()


def _nats(url: SplitResult) -> None:
    with socket.create_connection((url.hostname, url.port or 0), TIMEOUT_S) as connection:
        if connection.recv(4) != b"INFO":
            raise NotWellError("does not greet as a nats-server does")


def _file(url: SplitResult) -> None:
    late = time.time() - float(Path(url.path).read_text(encoding="ascii"))
    if late >= 0:
        raise NotWellError(
            f"the last heartbeat is too long ago: the next was due {late:.0f} s ago at the latest"
        )


_KINDS: dict[str, Callable[[SplitResult], None]] = {"http": _http, "tcp": _tcp, "nats": _nats, "file": _file}


def main(targets: list[str]) -> int:
    """Ask every target.

    Returns:
        The exit code.
    """
    failed = not targets
    if failed:
        print("probe: name at least one target")  # noqa: T201 - the container engine shows it
    for target in targets:
        try:
            probe(target)
        except NotWellError as error:
            failed = True
            print(f"{target}: {error}")  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
