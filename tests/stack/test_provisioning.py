"""Provisioning over a real identity service, also after a start that was cut off half-way."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.stack.provisioning import IdentityApi, Provisioner, client_names
from propeller.stack.state_folder import Secrets
from support.net import free_port
from support.service import start_service

NAMES = ("users", "domains", "channels", "clients")


@pytest.fixture
async def urls(tmp_path: Path) -> AsyncIterator[list[str]]:
    ports = {name: free_port() for name in NAMES}
    env = {
        **{f"IDENTITY_{name.upper()}_PORT": str(port) for name, port in ports.items()},
        "IDENTITY_DATABASE": str(tmp_path / "identity.db"),
        "IDENTITY_ADMIN_USERNAME": "admin",
        "IDENTITY_ADMIN_PASSWORD": "a password",
        "BROKER_SECRET": "s" * 32,
        "BROKER_NATS_URL": f"nats://127.0.0.1:{free_port()}",
    }
    with start_service("identity", env, ports["users"], tmp_path / "log"):
        yield [f"http://127.0.0.1:{ports[name]}" for name in NAMES]


async def provision(urls: list[str], secrets: Secrets, proplets: int = 3) -> Secrets:
    provisioner = Provisioner(*urls)
    try:
        await provisioner.ensure(secrets, proplets)
    finally:
        await provisioner.aclose()
    return secrets


async def good(urls: list[str], client: dict[str, str]) -> bool:
    api = IdentityApi(*urls)
    try:
        return await api.accepts(client["id"], client["key"])
    finally:
        await api.aclose()


async def test_what_is_known_is_kept_and_what_is_new_is_added(urls: list[str]) -> None:
    secrets = await provision(urls, Secrets("b", "admin", "a password"))
    assert set(secrets.clients) == set(client_names(3))
    before = {name: dict(client) for name, client in secrets.clients.items()}
    await provision(urls, secrets, proplets=5)
    assert {name: secrets.clients[name] for name in before} == before
    assert set(secrets.clients) == set(client_names(5))
    assert [await good(urls, client) for client in secrets.clients.values()] == [True] * 9


async def test_a_client_whose_key_was_never_kept_gets_another(urls: list[str]) -> None:
    secrets = await provision(urls, Secrets("b", "admin", "a password"))
    lost = secrets.clients.pop("proplet-2")
    domain, channel = secrets.domain_id, secrets.channel_id
    secrets.domain_id = secrets.channel_id = ""
    await provision(urls, secrets)
    assert (secrets.domain_id, secrets.channel_id) == (domain, channel)
    assert secrets.clients["proplet-2"]["id"] == lost["id"]
    assert secrets.clients["proplet-2"]["key"] != lost["key"]
    assert await good(urls, secrets.clients["proplet-2"])


async def test_a_key_that_was_revoked_is_replaced_by_one_that_works(urls: list[str]) -> None:
    secrets = await provision(urls, Secrets("b", "admin", "a password"))
    before = {name: dict(client) for name, client in secrets.clients.items()}
    secrets.clients["proxy"]["key"] = "0" * 64
    await provision(urls, secrets)
    assert secrets.clients["proxy"]["id"] == before["proxy"]["id"]
    assert await good(urls, secrets.clients["proxy"])
    assert not await good(urls, before["proxy"])
    assert {name: client for name, client in secrets.clients.items() if name != "proxy"} == {
        name: client for name, client in before.items() if name != "proxy"
    }
