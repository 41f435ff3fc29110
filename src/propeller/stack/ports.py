"""The ports of a stack: the guide's, or free ones."""

import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from propeller.process.run import StartError

GUIDE_PORTS = {
    "broker": 1883,
    "nats": 4222,
    "identity-users": 9002,
    "identity-domains": 9003,
    "identity-channels": 9005,
    "identity-clients": 9006,
    "manager": 7070,
    "coordinator": 8086,
    "aggregator": 8085,
    "model-registry": 8084,
    "data-store": 8083,
    "oci-registry": 5000,
    "proxy": 9191,
}
"""Host ports as the quick-start guide has them; ``nats`` and ``proxy`` are for the services themselves."""


_LOWEST, _HIGHEST = 20_000, 32_000
"""Below what systems give to outgoing connections (from 32768 on): one of those could take the port of a service
while the service is being started, or started again."""

_TRIES = 1_000


def guide_ports() -> dict[str, int]:
    """The guide's ports.

    Raises:
        StartError: naming each that something else listens on: that may be another stack, which would answer for this one.
    """
    taken = [f"{port} ({name})" for name, port in GUIDE_PORTS.items() if not _is_free(port)]
    if taken:
        raise StartError(
            f"already in use: port {', '.join(taken)}; stop what listens there, or take free ports with --ports auto"
        )
    return dict(GUIDE_PORTS)


def free_ports(before: Mapping[str, int] | None = None) -> dict[str, int]:
    """A free port of loopback for each name: the one that it had ``before``, where that is still free.

    All are held open until the last is found, so none comes twice. That a stack keeps its ports keeps the references of the programs in
    its own registry valid.
    """
    with ExitStack() as stack:
        return {name: _bind(stack, (before or {}).get(name)) for name in GUIDE_PORTS}


def _bind(stack: ExitStack, first: int | None) -> int:
    candidates = random.SystemRandom().sample(range(_LOWEST, _HIGHEST), _TRIES)
    for port in [*([first] if first else []), *candidates, 0]:  # 0: any that is left
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the services do: theirs may linger
        stack.callback(sock.close)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return int(sock.getsockname()[1])
    raise OSError("no port of loopback is free")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
