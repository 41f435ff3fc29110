"""The ports of a stack: the guide's, or free ones."""

import random
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack

from propeller.errors import StartError
from propeller.stack.services import PORTS

GUIDE_PORTS = {name: port.host for name, port in PORTS.items()}
"""The ports of the quick-start guide, and those that the services use among themselves."""

MQTTS_PORT = 8883
"""The broker's where it speaks TLS."""

FREE_PORTS = range(20_000, 32_000)
"""Below what systems give to outgoing connections (from 32768 on): one of those could take the port of a service
while the service is being started, or started again."""

_MAX_TRIES = 1_000


def guide_ports(ports: Mapping[str, int] = GUIDE_PORTS) -> dict[str, int]:
    """The guide's ports.

    Raises:
        StartError: naming each that something else listens on: that may be another stack, which would answer for this one.
    """
    taken = [f"{port} ({name})" for name, port in ports.items() if not _is_free(port)]
    if taken:
        raise StartError(
            f"already in use: port {', '.join(taken)}; stop what listens there, or take free ports with --ports auto"
        )
    return dict(ports)


def free_ports(
    reserved: ExitStack, before: Mapping[str, int] | None = None, candidates: range = FREE_PORTS
) -> dict[str, int]:
    """A free port of loopback for each name: the one that it had ``before``, where that is still free.

    A stack that keeps its ports keeps the references of the programs in its own registry valid. No port comes twice, and
    on Linux no other stack that starts takes one while ``reserved`` is open.
    """
    before = before or {}
    with ExitStack() as bound:
        ports = {
            name: port for name, port in before.items() if name in GUIDE_PORTS and _bind_again(bound, port)
        }
        for name in GUIDE_PORTS.keys() - ports.keys():
            ports[name] = _bind_new(bound, candidates)
        if sys.platform == "linux":  # where the service may listen on a port that is reserved like this
            reserved.enter_context(bound.pop_all())
    return ports


def _bind_again(bound: ExitStack, port: int) -> bool:
    """Whether a port that was used before is free; connections of that use may linger."""
    return _bind(bound, port, lingering=True) is not None


def _bind_new(bound: ExitStack, candidates: range) -> int:
    chosen = random.SystemRandom().sample(candidates, min(_MAX_TRIES, len(candidates)))
    for port in [*chosen, 0]:  # 0: any that is left
        if (found := _bind(bound, port)) is not None:
            return found
    raise OSError("no port of loopback is free")


def _bind(bound: ExitStack, port: int, *, lingering: bool = False) -> int | None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, lingering)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        return None
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # lets the service, which asks for reuse too, listen
    bound.enter_context(sock)
    return int(sock.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
