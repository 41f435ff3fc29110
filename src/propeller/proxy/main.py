"""The proxy as a service."""

import asyncio
from functools import partial
from pathlib import Path

from propeller.errors import StartError
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.problems import SettingNames
from propeller.mqtt.session import Credentials, Session
from propeller.oci.client import RegistryClient
from propeller.oci.credentials import Logins, logins_for
from propeller.process.logs import get_logger
from propeller.protocol.topics import EVERYONE, Channel, Kind
from propeller.proxy.delivery import ProgramSender
from propeller.proxy.metrics import ProxyMetrics
from propeller.proxy.programs import BlobCache, ProgramSource
from propeller.proxy.requesters import RequestLimits
from propeller.proxy.service import OpenRequests, ProxyService
from propeller.proxy.settings import ProxySettings
from propeller.web.app import create_app
from propeller.web.auth import admission
from propeller.web.server import bind_api, serve

log = get_logger("proxy")

_LOGIN_HELP = (
    "set PROXY_AUTHENTICATE=true, PROXY_REGISTRY_URL={registry}, PROXY_REGISTRY_USERNAME and PROXY_REGISTRY_PASSWORD (GHCR: "
    "your user name in lower case and a token with read:packages), or log in with `docker login {host}`, and restart the "
    "proxy"
)


async def main(settings: ProxySettings, stop: asyncio.Event) -> None:
    """Answer requests until ``stop`` is set.

    Raises:
        StartError: the cache folder or the port cannot be used.
    """
    bind = bind_api("proxy", settings, settings.http_host, settings.http_port, "PROXY_HTTP_PORT")
    blobs, requests = await asyncio.to_thread(_open_folders, settings)
    channel, metrics = Channel(settings.domain_id, settings.channel_id), ProxyMetrics()
    address = BrokerAddress.parse(settings.mqtt_address)
    session = Session(
        address,
        Credentials(settings.client_id, settings.client_id, settings.client_key.get_secret_value()),
        tls=settings.tls_context(address),
        names=SettingNames.of_service("PROXY"),
    )
    publish = partial(session.publish, qos=settings.mqtt_qos, timeout=settings.mqtt_timeout)
    client = RegistryClient(
        registry_logins(settings),
        login_help=_LOGIN_HELP,
        manifests=blobs,
        max_bytes=settings.max_program_bytes,
        idle_timeout=settings.registry_timeout,
        allowed=settings.allowed,
    )
    async with client:
        programs = ProgramSource(client, blobs, settings.default_registry, metrics, settings.believed)
        sender = ProgramSender(programs.open, publish, settings.chunk_size, metrics)
        limits = RequestLimits(settings.client_requests, settings.client_bytes)
        service = ProxyService(channel, publish, programs, sender, requests, metrics, limits)
        app = create_app(
            "proxy",
            admission=admission("proxy", settings, settings.domain_id),
            access={},
            metrics=metrics,
            health=lambda: {"status": "ok", "service": "proxy"},
        )
        request = Kind.REGISTRY_REQUEST
        for topic in (channel.said(request, EVERYONE), channel.topic(request)):
            await session.subscribe(topic, service.handle_request, max(settings.mqtt_qos, 1))
        async with session.running():
            try:
                service.resume()
                await serve([(bind, app)], stop)
            finally:
                await service.close()


def _open_folders(settings: ProxySettings) -> tuple[BlobCache, OpenRequests]:
    folder: Path = settings.cache
    try:
        return BlobCache(folder / "blobs", settings.cache_bytes), OpenRequests(folder / "pending")
    except OSError as error:
        raise StartError(
            f"proxy: cannot keep programs in {folder}: {error.strerror}; set PROXY_CACHE"
        ) from None


def registry_logins(settings: ProxySettings) -> Logins:
    """The logins to use; a log line says which half of one is missing."""
    given, registry = settings.registry_credential, str(settings.registry)
    if not settings.authenticate:
        if given is not None:
            log.warning(
                "credentials of the registry are set but not used; set PROXY_AUTHENTICATE=true to use them",
                registry=registry,
            )
        return {}
    found = logins_for(settings.registry, given)
    if registry not in found:
        log.warning(
            "PROXY_AUTHENTICATE is true, but there is no login for the registry; set PROXY_REGISTRY_USERNAME and "
            "PROXY_REGISTRY_PASSWORD",
            registry=registry,
        )
    return found
