"""The ports of a stack: the guide's, or free ones."""

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


def free_ports() -> dict[str, int]:
    """A free port of loopback for each name; all are held open until the last is found, so none comes twice."""
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in GUIDE_PORTS}
        return {name: int(sock.getsockname()[1]) for name, sock in sockets.items()}
