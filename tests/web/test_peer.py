"""Who has the other end of a connection over loopback: real sockets, and where tests run as root another user's."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from propeller.web import peer
from propeller.web.peer import is_own_user, socket_owner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a socket is")

OTHER_UID = 1234

CONNECT = """
import encodings.idna, os, socket, sys
os.setuid(int(sys.argv[2]))
connected = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(connected.getsockname()[1], flush=True)
sys.stdin.read()
"""


def scope(client: tuple[str, int], server: tuple[str, int], **headers: str) -> dict[str, object]:
    return {
        "client": client,
        "server": server,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_own_connections_and_closed_ones(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        accepted, own = server.accept()[0], client.getsockname()[:2]
        listening = server.getsockname()[:2]
        assert socket_owner(own, listening) == os.geteuid()
        assert is_own_user(scope(own, listening))
        # What a proxy passes on is not the proxy's, and nobody is known by an address of another machine.
        for name in ("forwarded", "x-forwarded-for", "via", "x-real-ip"):
            assert not is_own_user(scope(own, listening, **{name: "1.2.3.4"}))
        assert not is_own_user(scope(("192.0.2.1", own[1]), listening))
        client.close()  # the kernel shows an orphan as one of root: it counts as nobody's
        assert socket_owner(own, listening) is None
        assert not is_own_user(scope(own, listening))
        accepted.close()


def test_what_is_no_connection() -> None:
    assert socket_owner(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    assert socket_owner(("nonsense", 1), ("127.0.0.1", 2)) is None
    assert socket_owner(("127.0.0.1", 99_999), ("127.0.0.1", 2)) is None
    assert not is_own_user({"client": None, "server": None, "headers": []})
    assert not is_own_user(scope(("127.0.0.1", 1), ("127.0.0.1", 2)))


def test_users_that_this_namespace_does_not_have_are_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        asked = scope(client.getsockname(), server.getsockname())
        assert is_own_user(asked)
        monkeypatch.setattr(peer, "_overflow_uid", os.geteuid)
        assert not is_own_user(asked)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_connection_is_theirs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = server.getsockname()
        command = [sys.executable, "-I", "-S", "-c", CONNECT, str(listening[1]), str(OTHER_UID)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path("/")
        ) as process:
            assert process.stdout is not None
            own = ("127.0.0.1", int(process.stdout.readline()))
            assert socket_owner(own, listening) == OTHER_UID
            assert not is_own_user(scope(own, listening))
            process.communicate()
