"""Which registries and addresses a service's client asks: over real sockets."""

import socket
from pathlib import Path

import httpcore
import httpx
import pytest

from propeller.digests import digest_of
from propeller.oci.allowed import AllowedRegistries, is_public, parse_registries
from propeller.oci.client import RegistryClient
from propeller.oci.errors import (
    RegistryNotAllowedError,
    RegistryUnreachableError,
    UnsupportedArtifactError,
)
from propeller.oci.reference import Reference, Registry
from support.http_servers import Answer, RecordingServer, open_silent_server
from support.net import free_port
from support.registries import embedded, wasm


def guarded(*hosts: str) -> RegistryClient:
    allowed = AllowedRegistries(parse_registries(",".join(hosts)), "PROXY_ALLOWED_REGISTRIES", "proxy")
    return RegistryClient(allowed=allowed, idle_timeout=0.3, retry_delays=())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("fe80::1%eth0", False),
        ("fd00::1", False), ("fec0::1", False), ("::ffff:127.0.0.1", False), ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b::101:101", True), ("::127.0.0.1", False),
    ],
)  # fmt: skip
def test_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_a_named_registry_may_be_on_loopback_and_no_other_is_asked(tmp_path: Path) -> None:
    other = RecordingServer(lambda _path, _authorization: (200, {}, b""))
    async with embedded(tmp_path) as host, RegistryClient() as person, guarded(host) as one:
        await person.push(Reference.parse(f"{host}/x"), wasm())
        assert (await one.pull(Reference.parse(f"{host}/x")))[1] == wasm()
        with other.running():
            for name in (
                other.host,
                other.host.replace("127.0.0.1", "localhost"),
                f"127.0.0.1:{free_port()}",
            ):
                with pytest.raises(RegistryNotAllowedError, match="PROXY_ALLOWED_REGISTRIES") as caught:
                    await one.resolve(Reference.parse(f"{name}/x"))
                assert str(caught.value).startswith(f"{name} is not a registry that the proxy fetches from")
        assert other.seen == []


@pytest.mark.parametrize(
    ("known", "asked", "said"),
    [
        (
            "https://127.0.0.2:26429",
            "127.0.0.2:26429",
            "write https://127.0.0.2:26429/… to fetch from that one; else",
        ),
        (
            "127.0.0.1:5000",
            "https://127.0.0.1:5000",
            "write http://127.0.0.1:5000/… to fetch from that one; else",
        ),
        ("127.0.0.1:5000", "127.0.0.1:5001", "whoever runs it"),
    ],
)
def test_where_only_the_scheme_differs_the_remedy_is_to_write_it(known: str, asked: str, said: str) -> None:
    allowed = AllowedRegistries(parse_registries(known), "PROXY_ALLOWED_REGISTRIES", "proxy")
    with pytest.raises(RegistryNotAllowedError) as caught:
        allowed.check(Registry.parse(asked))
    assert caught.value.remedy.startswith(said)


async def test_what_a_registry_sends_on_to_must_be_public_https_or_named() -> None:
    store = RecordingServer(lambda _path, _authorization: (200, {}, b"{}"))
    inside = f"localhost:{free_port()}"

    def answer(path: str, _authorization: str | None) -> Answer:
        if "token" in path:
            return 401, {"WWW-Authenticate": f'Bearer realm="http://{store.host}/t"'}, b""
        where = f"https://{inside}" if "secure" in path else f"http://{store.host}"
        return 307, {"Location": f"{where}{path}"}, b""

    registry = RecordingServer(answer)
    with store.running(), registry.running():
        async with guarded(registry.host) as one:
            for name in ("plain", "secure", "token"):
                with pytest.raises(RegistryUnreachableError) as caught:
                    await one.resolve(Reference.parse(f"{registry.host}/{name}@{digest_of(b'{}')}"))
                assert str(caught.value).endswith("cannot be reached now; the proxy's log says why")
                assert store.host not in str(caught.value)
                assert inside not in str(caught.value)
        assert store.seen == []
        async with guarded(registry.host, store.host) as one:
            with pytest.raises(UnsupportedArtifactError):  # it was read
                await one.resolve(Reference.parse(f"{registry.host}/plain@{digest_of(b'{}')}"))
        assert len(store.seen) == 1


async def test_a_name_that_changes_after_it_was_looked_up_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[str] = []
    connected: list[str] = []

    async def look_up(host: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        looked_up.append(host)
        address = "1.1.1.1" if len(looked_up) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def connect(_self: object, host: str, *_more: object) -> None:
        connected.append(host)
        raise httpcore.ConnectError("nobody there")

    monkeypatch.setattr("anyio.getaddrinfo", look_up)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    allowed = AllowedRegistries(parse_registries("ghcr.io"), "PROXY_ALLOWED_REGISTRIES", "proxy")
    async with httpx.AsyncClient(transport=allowed.transport(), trust_env=False) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("https://blobs.example/x")
        assert (looked_up, connected) == (["blobs.example"], ["1.1.1.1"])
        with pytest.raises(RegistryUnreachableError, match="no public address"):
            await http.get("https://blobs.example/x")
        assert connected == ["1.1.1.1"]


async def test_refused_silent_and_no_registry_read_the_same() -> None:
    texts = set()
    no_registry = RecordingServer(lambda _path, _authorization: (500, {}, b"<html>"))
    with open_silent_server() as silent, no_registry.running():
        for host in (silent, no_registry.host, f"127.0.0.1:{free_port()}"):
            async with guarded(host) as one:
                with pytest.raises(RegistryUnreachableError) as caught:
                    await one.resolve(Reference.parse(f"{host}/x"))
                texts.add(str(caught.value).replace(host, "HOST"))
    assert len(texts) == 1
