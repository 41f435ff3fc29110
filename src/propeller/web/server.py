"""Serving apps: several of them on their own ports in one process, until told to stop."""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn

from propeller.errors import StartError
from propeller.process.logs import get_logger
from propeller.process.run import cannot_listen
from propeller.process.settings import HttpSettings
from propeller.process.tls import KeyPair, keep_current
from propeller.web.http_protocol import HttpProtocol
from propeller.web.sites import is_loopback

log = get_logger("server")

_LAST_PORT = 65535

GRACE_S = 2
"""How long open requests may go on after a stop, in seconds."""

KEEP_ALIVE_S = 30
"""How long a connection may be idle, in seconds."""


@dataclass(frozen=True)
class Bind:
    """Where to listen.

    Attributes:
        name: what is listening, for the error when it cannot.
        host: its address.
        port: 0 for any free one.
        variable: the setting that chooses the port, for that error.
        tls: the certificate to show; HTTP without one.
        trusted_proxies: whose ``X-Forwarded-*`` headers are believed; nobody's if empty.
    """

    name: str
    host: str
    port: int
    variable: str = ""
    tls: KeyPair | None = None
    trusted_proxies: str = ""


def check_exposure(service: str, host: str, *, authenticated: bool, insecure: bool) -> None:
    """Refuse to serve without authentication beyond loopback, unless told so.

    Raises:
        StartError: with what to set.
    """
    if authenticated or insecure or is_loopback(host):
        return
    raise StartError(
        f"{service} would listen on {host} without authentication; set PROPELLER_AUTH=on with PROPELLER_IDENTITY_URL, "
        "listen on 127.0.0.1, or pass --insecure (PROPELLER_INSECURE=true) if the network itself is trusted"
    )


def bind_api(
    name: str,
    settings: HttpSettings,
    host: str,
    port: int,
    variable: str,
    *,
    tls: KeyPair | None = None,
    has_login: bool = False,
) -> Bind:
    """Where a service's API listens. Called before the service opens anything: what may not be served is not started.

    Args:
        name: of the service.
        settings: whether callers authenticate, and whether the network is trusted if they do not.
        host: the address.
        port: 0 for any free one.
        variable: the setting that chooses the port.
        tls: the certificate to show, if not the one that all services of a machine have (``PROPELLER_TLS_CERT``).
        has_login: whether the API asks for a login of its own where callers do not authenticate otherwise.

    Raises:
        StartError: it would be open to a network; the text says what to set.
    """
    authenticated = has_login or (settings.auth == "on" and settings.identity_url is not None)
    check_exposure(name, host, authenticated=authenticated, insecure=settings.insecure)
    return Bind(name, host, port, variable, tls or settings.tls, settings.trusted_proxies)


def listen(bind: Bind) -> socket.socket:
    """Open a listening socket.

    Raises:
        StartError: the port is taken or the host is not this machine's; the text says what to do.
    """
    if not 0 <= bind.port <= _LAST_PORT:
        raise StartError(f"{bind.name}: {bind.port} is not a port; choose one from 1 to {_LAST_PORT}")
    try:
        sock = socket.create_server((bind.host, bind.port), backlog=1024, family=_family(bind.host))
    except OSError as error:
        raise cannot_listen(bind.name, bind.host, bind.port, bind.variable, error) from None
    # asyncio sets this only on sockets made with an explicit protocol; without it an answer waits 40 ms for an ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def serve(apps: list[tuple[Bind, Any]], stop: asyncio.Event) -> None:
    """Serve each app on its port until ``stop`` is set, then let open requests end.

    Raises:
        StartError: a port or a certificate cannot be had, then none is served; or an app's lifespan failed.
    """
    sockets: list[socket.socket] = []
    running: list[asyncio.Task[None]] = []
    seen = [bind.tls.versions() if bind.tls else [] for bind, _app in apps]
    contexts = [bind.tls.server_context() if bind.tls else None for bind, _app in apps]
    watches = [
        asyncio.create_task(keep_current(bind.tls, versions, partial(bind.tls.load_into, context)))
        for (bind, _app), context, versions in zip(apps, contexts, seen, strict=True)
        if bind.tls and context
    ]
    try:
        for bind, _app in apps:
            sockets.append(listen(bind))
        servers = [
            _Server(bind.name, _config(bind, app, context))
            for (bind, app), context in zip(apps, contexts, strict=True)
        ]
        for (bind, _app), sock in zip(apps, sockets, strict=True):
            log.info("listening", service_name=bind.name, host=bind.host, port=sock.getsockname()[1])
        running = [
            asyncio.create_task(server.serve(sockets=[sock]))
            for server, sock in zip(servers, sockets, strict=True)
        ]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.should_exit = True
        stopping.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if outcome is not None:
                raise outcome
    finally:
        for task in [*running, *watches]:
            task.cancel()
        for sock in sockets:
            sock.close()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers and ``sys.exit``: the process has one place for each."""

    def __init__(self, name: str, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.name = name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            raise StartError(f"{self.name}: the app could not start; the log says why") from None

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _config(bind: Bind, app: Any, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        proxy_headers=bool(bind.trusted_proxies),
        forwarded_allow_ips=bind.trusted_proxies,
        ssl_context_factory=(lambda _config, _default: tls) if tls else None,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        lifespan="on",
        ws="none",
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
