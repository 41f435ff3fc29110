"""A broker with an identity service on free ports, in this process."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import argon2
import httpx
import pytest

from propeller.identity.main import main
from propeller.identity.service import Identity, open_identity
from propeller.identity.settings import IdentitySettings
from propeller.mqtt.broker import Broker
from propeller.mqtt.broker_config import BrokerSettings
from propeller.store.ownership import owned
from support.databases import database_at
from support.net import eventually, free_port
from support.provisioned import Provisioned, provision

SECRET = "a secret of the tests"
PASSWORD = "12345678"


@dataclass(frozen=True)
class Site:
    """The settings of a broker and its identity, in one folder."""

    broker: BrokerSettings
    identity: IdentitySettings

    @classmethod
    def at(cls, folder: Path) -> "Site":
        """Choose free ports."""
        nats = free_port()
        return cls(
            BrokerSettings.load(port=free_port(), nats_port=nats, state=folder / "broker", secret=SECRET),
            IdentitySettings.load(
                users_port=free_port(),
                domains_port=free_port(),
                channels_port=free_port(),
                clients_port=free_port(),
                database=database_at(folder / "identity.db"),
                admin_password=PASSWORD,
                broker_secret=SECRET,
                broker_url=f"nats://127.0.0.1:{nats}",
            ),
        )

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Identity]:
        """The identity service without HTTP, connected to the broker."""
        async with contextlib.AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                owned(self.identity.database, "identity", asyncio.Event())
            )
            assert database is not None
            identity = await stack.enter_async_context(open_identity(self.identity, database))
            await eventually(lambda: identity.link.connected, what="identity is connected to the broker")
            yield identity

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Identity, Provisioned]]:
        """Broker and identity with the guide's clients."""
        async with Broker(self.broker), self.open() as identity:
            yield identity, await provision(identity)

    @contextlib.asynccontextmanager
    async def running_again(self) -> AsyncIterator[Identity]:
        """The same broker and identity later: what was provisioned is there."""
        async with Broker(self.broker), self.open() as identity:
            yield identity

    def client(self, client_id: str, key: str, mqtt_id: str | None = None, **options: Any) -> aiomqtt.Client:
        """An MQTT client that is not connected yet."""
        return aiomqtt.Client(
            "127.0.0.1",
            self.broker.port,
            username=client_id or None,
            password=key or None,
            identifier=client_id if mqtt_id is None else mqtt_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            **options,
        )


def hash_cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passwords be hashed fast for the length of a test."""
    cheap = functools.partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("propeller.identity.credentials.argon2.PasswordHasher", cheap)


@contextlib.asynccontextmanager
async def served(settings: IdentitySettings) -> AsyncIterator[httpx.AsyncClient]:
    """The identity service over HTTP, without a broker; the client has its users' address as base."""
    stop = asyncio.Event()
    serving = asyncio.create_task(main(settings, stop))
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{settings.users_port}", trust_env=False
        ) as client:

            async def up() -> bool:
                if serving.done():
                    serving.result()
                try:
                    return (await client.get("/health")).is_success
                except httpx.TransportError:
                    return False

            await eventually(up, what="identity answers")
            yield client
    finally:
        stop.set()
        await serving


async def first(client: aiomqtt.Client, timeout: float = 5.0) -> bytes:
    """The payload of the next message."""
    async with asyncio.timeout(timeout):
        async for message in client.messages:
            return bytes(message.payload)
    raise AssertionError("no message")
