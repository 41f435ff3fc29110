"""A stack that others reach over a network: its authority, and the certificate that all of its servers show."""

import asyncio
import ipaddress
import socket
from pathlib import Path

from propeller.errors import StartError
from propeller.process.certificates import Authority
from propeller.process.logs import get_logger
from propeller.stack.config import HOST, StackTls

log = get_logger("up")

CERTIFICATES = "certs"
"""The folder of the authority, in the state folder."""

SERVER = "server"

_RENEW_S = 86_400.0


def own_hosts(host: str) -> list[str]:
    """What a stack's certificate is good for: how others reach it, and this machine itself."""
    return list(dict.fromkeys([host, "localhost", HOST, "::1", socket.gethostname().lower()]))


def prepare_network(state: Path, host: str) -> StackTls:
    """The certificates of a stack that others reach by ``host``, made if they are not there, or end soon.

    Raises:
        StartError: it is not a name or an IPv4 address, or the files cannot be used.
    """
    try:
        ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        pass
    else:
        raise StartError(
            f"--host: {host} is an IPv6 address, and services listen on IPv4: give a name, or an IPv4 address"
        )
    authority = Authority(state / CERTIFICATES)
    authority.ensure()
    try:
        cert, key = authority.ensure_server(SERVER, own_hosts(host))
    except StartError as error:
        raise StartError(f"--host: {error}") from None
    return StackTls(host, authority.file, cert, key)


async def renew_certificate(state: Path, host: str) -> None:
    """Make the certificate of a running stack again before it ends; its servers show it from then on."""
    while True:
        await asyncio.sleep(_RENEW_S)
        try:
            await asyncio.to_thread(prepare_network, state, host)
        except StartError as error:
            log.warning("the certificate cannot be made again", reason=str(error))
