"""Which user of this machine a caller on loopback is, as the kernel's table of sockets tells (as PostgreSQL's peer authentication).

A connection over loopback has both of its sockets on this machine, and each belongs to the user who made it. Linux is asked for
the caller's by netlink (``sock_diag(7)``); other systems have no such question, and no caller is recognised there.
"""

import functools
import os
import socket
import struct
import sys
from pathlib import Path

from starlette.types import Scope

from propeller.web.sites import is_loopback

_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _NETLINK_SOCK_DIAG = 20, 1, 4
_ESTABLISHED = 1
_ANY_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, process
_ASKED = struct.Struct(
    "=BBBBI"
)  # inet_diag_req_v2: family, protocol, extensions, padding, states; then the socket's id
_FOUND = struct.Struct("=BBBB48sIIIII")  # inet_diag_msg: family, state, …, its id, expiry, queues, uid, inode

_WAIT_S = 1.0

_FORWARDED = (
    b"forwarded",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
)
"""What a proxy adds: the caller's socket is then the proxy's, which is not who calls."""


def is_own_user(scope: Scope) -> bool:
    """Whether a request comes from a process of the user that this one runs as, over loopback, and through no proxy."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or server[1] is None or not is_loopback(client[0]):
        return False
    if any(name in _FORWARDED for name, _value in scope["headers"]):
        return False
    uid = os.geteuid()
    # A user of another user namespace is shown as this one: it may be anybody.
    return uid != _overflow_uid() and socket_owner((client[0], client[1]), (server[0], server[1])) == uid


def socket_owner(own: tuple[str, int], peer: tuple[str, int]) -> int | None:
    """The user whose open TCP socket of this machine has an address and is connected to another.

    Args:
        own: address and port of the socket.
        peer: what it is connected to.

    Returns:
        The user's number. ``None`` if there is no such connection, or the socket has been closed by its process, which the kernel
        then shows as one of user 0; and where the kernel cannot be asked.
    """
    if sys.platform != "linux":
        return None
    family = socket.AF_INET6 if ":" in own[0] else socket.AF_INET
    try:
        addresses = [socket.inet_pton(family, host).ljust(16, b"\0") for host, _port in (own, peer)]
        identity = struct.pack("!HH", own[1], peer[1]) + b"".join(addresses) + bytes(4) + _ANY_COOKIE
        asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _ESTABLISHED) + identity
        header = _HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(_WAIT_S)
            kernel.send(header + asked)
            answer = kernel.recv(4096)
    except (OSError, struct.error):
        return None
    if len(answer) < _HEADER.size + _FOUND.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # an error: no such connection
    _family, state, _timer, _retries, _id, _expiry, _read, _write, uid, inode = _FOUND.unpack_from(
        answer, _HEADER.size
    )
    return uid if state == _ESTABLISHED and inode else None


@functools.cache
def _overflow_uid() -> int:
    """Whom the kernel shows for users that this user namespace does not have."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return -1
