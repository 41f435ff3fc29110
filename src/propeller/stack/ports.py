"""The ports of a stack: the guide's, or free ones."""

import random
import socket
from contextlib import ExitStack

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


def free_ports() -> dict[str, int]:
    """A free port of loopback for each name; all are held open until the last is found, so none comes twice."""
    with ExitStack() as stack:
        return {name: _bind(stack) for name in GUIDE_PORTS}


def _bind(stack: ExitStack) -> int:
    candidates = random.SystemRandom().sample(range(_LOWEST, _HIGHEST), _TRIES)
    for port in [*candidates, 0]:  # 0: any that is left
        sock = socket.socket()
        stack.callback(sock.close)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return int(sock.getsockname()[1])
    raise OSError("no port of loopback is free")
