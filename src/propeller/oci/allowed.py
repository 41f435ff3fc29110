"""Which registries a service fetches from, and which addresses it connects to for that."""

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import anyio
import httpcore
import httpx

from propeller.oci.errors import RegistryNotAllowedError, RegistryUnreachableError
from propeller.oci.reference import Registry
from propeller.process.tls import add_stack_trust

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def parse_registries(text: str) -> frozenset[Registry]:
    """Read registries separated by commas, each as ``Registry.parse`` takes it.

    Raises:
        InvalidReferenceError: one of them is not a registry.
    """
    return frozenset(Registry.parse(part) for part in text.split(",") if part.strip())


def check_registries(text: str) -> str:
    """Read registries as ``parse_registries`` does, for a setting that keeps the text.

    Raises:
        InvalidReferenceError: one of them is not a registry.
    """
    parse_registries(text)
    return text


@dataclass(frozen=True)
class AllowedRegistries:
    """The registries that a service fetches from.

    They may be at any address. What they send it on to (token servers, stores of blobs) is one of them, or it speaks
    HTTPS and has a public address.

    Attributes:
        registries: each with its port and whether it speaks plain HTTP.
        setting: the name of the variable that lists them, for errors.
        service: whose log has the details of a failure.
    """

    registries: frozenset[Registry]
    setting: str
    service: str

    @cached_property
    def origins(self) -> frozenset[tuple[str, str, int]]:
        """Scheme, host and port of each."""
        return frozenset(origin_of(httpx.URL(registry.base_url)) for registry in self.registries)

    def check(self, registry: Registry) -> None:
        """Refuse a registry that is not one of them.

        Raises:
            RegistryNotAllowedError: the text is the same whatever is at that address.
        """
        if registry not in self.registries:
            known = ", ".join(sorted(map(str, self.registries)))
            other = replace(registry, plain_http=not registry.plain_http)
            remedy = f"whoever runs it can add it to {self.setting}"
            if other in self.registries:  # the same with TLS, or without: a reference says which
                remedy = f"write {other.base_url}/… to fetch from that one; else {remedy}"
            raise RegistryNotAllowedError(
                f"{registry} is not a registry that the {self.service} fetches from (those are {known})",
                remedy,
            )

    def check_address(self, url: httpx.URL) -> None:
        """Refuse an address that a registry sent on to, unless it is HTTPS or one of the registries.

        Raises:
            RegistryUnreachableError: for the log.
        """
        if url.scheme != "https" and origin_of(url) not in self.origins:
            raise RegistryUnreachableError(
                f"{url.host} is not HTTPS and not in {self.setting}", "add it there if it is meant"
            )

    def transport(self) -> httpx.AsyncHTTPTransport:
        """What connects to public addresses and to these registries alone."""
        return _Transport(_CheckedNetwork(self))


def origin_of(url: httpx.URL) -> tuple[str, str, int]:
    """Scheme, host and port, the default one if it has none."""
    return url.scheme, url.host, url.port or {"http": 80}.get(url.scheme, 443)


def is_public(address: str) -> bool:
    """Whether an address is of the internet: not of this machine, its network or a reserved range, also not by an IPv4 address in it."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Looks names up itself and connects to the address that it has checked: a name that changes meanwhile gains nothing."""

    def __init__(self, allowed: AllowedRegistries) -> None:
        self._setting = allowed.setting
        self._named = frozenset((host, port) for _scheme, host, port in allowed.origins)
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        if (host, port) in self._named:
            return await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        addresses = await self._public_addresses(host, port, timeout)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def _public_addresses(self, host: str, port: int, seconds: float | None) -> list[str]:
        try:
            with anyio.fail_after(seconds):
                found = await anyio.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        public = list(dict.fromkeys(str(entry[4][0]) for entry in found if is_public(str(entry[4][0]))))
        if not public:
            raise RegistryUnreachableError(
                f"{host}:{port} has no public address and is not in {self._setting}",
                "add it there if it is meant",
            )
        return public


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's transport on a network of our own, which its constructor does not take."""

    def __init__(self, network: httpcore.AsyncNetworkBackend) -> None:
        super().__init__()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=add_stack_trust(httpx.create_ssl_context()),
            max_connections=None,  # one registry that hangs must not hold up the others
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=network,
        )
