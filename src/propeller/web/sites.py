"""Which site a request is for and which it comes from: against pages of other sites that a browser on this machine shows.

A page can have a browser send requests to any address, in the name of whoever uses the browser. It cannot choose the ``Origin`` that
the browser tells, nor announce JSON without being asked first; and if it has its own name lead to this machine (DNS rebinding),
the ``Host`` is still that name.
"""

import functools
import ipaddress
import socket
from collections.abc import Iterable, Mapping

from propeller.errors import RefusedError

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""

ANY_HOST = "*"


class Sites:
    """The names that a service is called by."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """``names`` beside its addresses, ``localhost`` and the machine's own name; ``*`` for any."""
        given = {name.strip().lower().rstrip(".") for name in names if name.strip()}
        self._any = ANY_HOST in given
        self._names = frozenset(given | {socket.gethostname().lower()})

    def check(self, method: str, headers: Mapping[bytes, bytes], address: str) -> None:
        """See that a request is for this service, and that no page of another site has it change something.

        Args:
            method: of the request.
            headers: of the request.
            address: of this machine, that the connection was made to.

        Raises:
            RefusedError: with what is wrong.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._is_served(host, address):
            raise RefusedError(
                f"Host is {host[:100]!r}, which is not a name of this service: use its address, or add the name to PROPELLER_HOSTS"
            )
        if method not in _SAFE and is_foreign(headers):
            origin = headers.get(b"origin", b"").decode("latin-1")
            raise RefusedError(
                f"a page of another site ({origin[:100] or 'unnamed'}) may not {method} here: only pages of this service may"
            )

    def _is_served(self, host: str, address: str) -> bool:
        if self._any:
            return True
        name = host_name(host)
        return name in self._names or name == address or (name in _LOOPBACK and is_loopback(address))


def is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a request comes from a page of another site than the one it goes to."""
    origin = headers.get(b"origin")
    if origin is not None:
        return origin.partition(b"://")[2] != headers.get(b"host", b"")
    return headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}


@functools.lru_cache(maxsize=1024)
def host_name(host: str) -> str:
    """The name in a ``Host`` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
