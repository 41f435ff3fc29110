"""Devices that have a key and mean ill: they flood, send garbage, send updates that can never count, and say that they are others."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx

from faults.stack import FaultyStack
from propeller.fl.round import RoundState
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, NotConnectedError, Session
from propeller.process.http import ServiceError
from propeller.protocol.topics import PROPLET_SAYS, Channel, Kind
from propeller.stack.provisioning import IdentityApi
from propeller.stack.services import IDENTITY_LISTENERS
from support.garbage import GARBAGE

_FLOOD = 3000
_PATIENCE_S = 2.0
"""For what the broker may never take, as it mutes who says too much."""


async def hostile_device(stack: FaultyStack, rng: Random) -> str:
    """One device does one ill thing, as a client of its own."""
    how = rng.choice((flood, send_garbage, send_worthless_updates, pretend))
    try:
        async with asyncio.timeout(30):
            device = await join(stack, f"hostile-{rng.randrange(10**9)}")
            await how(stack, device)
    except (httpx.TransportError, ServiceError, TimeoutError) as error:  # what it speaks to may be away
        return f"{how.__name__.replace('_', ' ')}, which did not come far: {error!r}"
    return how.__name__.replace("_", " ")


async def flood(stack: FaultyStack, device: dict[str, str]) -> None:
    """Heartbeats, as many as go."""
    async with connected(stack, device) as (session, channel):
        topic = channel.said(Kind.PROPLET_ALIVE, device["id"])
        beat = json.dumps({"proplet_id": device["id"], "status": "alive"}).encode()
        await _publish(session, [(topic, beat)] * _FLOOD)


async def send_garbage(stack: FaultyStack, device: dict[str, str]) -> None:
    """Whatever is no message, on every topic that it may use."""
    async with connected(stack, device) as (session, channel):
        kinds = (*PROPLET_SAYS, Kind.REGISTRY_REQUEST)
        topics = [channel.said(kind, device["id"]) for kind in kinds] + [channel.update("r-1", device["id"])]
        await _publish(session, [(topic, each) for topic in topics for each in GARBAGE])


async def send_worthless_updates(stack: FaultyStack, device: dict[str, str]) -> None:
    """Updates of its own in rounds that it does not take part in."""
    for round_id in await _open_rounds(stack):
        for number in (0.0, 1e308):
            await _send_update(stack, device, round_id, device["id"], number)


async def pretend(stack: FaultyStack, device: dict[str, str]) -> None:
    """Updates of others by its own key, and their results and ends on their topics."""
    victims = stack.up.ids()
    for round_id in await _open_rounds(stack):
        for victim in victims:
            await _send_update(stack, device, round_id, victim, 7.0)
    async with connected(stack, device) as (session, channel):
        said = json.dumps({"proplet_id": victims[0], "status": "offline"}).encode()
        kinds = (Kind.PROPLET_ALIVE, Kind.PROPLET_RESULTS, Kind.PROPLET_CREATE)
        await _publish(session, [(channel.said(kind, victim), said) for kind in kinds for victim in victims])


async def join(stack: FaultyStack, name: str) -> dict[str, str]:
    """A new client of the channel; its id and key.

    Raises:
        httpx.TransportError, ServiceError: identity is away.
    """
    described = stack.up.stack
    urls = [described["services"]["identity"][listener] for listener in IDENTITY_LISTENERS]
    api = IdentityApi(*urls, timeout=5)
    try:
        await api.login(described["admin"]["username"], described["admin"]["password"])
        device = await api.make_client(described["domain_id"], name)
        await api.connect(described["domain_id"], described["channel_id"], [device["id"]])
    finally:
        await api.aclose()
    return device


@contextlib.asynccontextmanager
async def connected(stack: FaultyStack, device: dict[str, str]) -> AsyncIterator[tuple[Session, Channel]]:
    """Its session with the broker, which may still be away."""
    described = stack.up.stack
    broker = described["broker"]
    session = Session(
        BrokerAddress(broker["host"], broker["port"]),
        Credentials(device["id"], device["id"], device["key"]),
        clean=True,
    )
    async with session.running():
        yield session, Channel(described["domain_id"], described["channel_id"])


async def _publish(session: Session, messages: list[tuple[str, bytes]]) -> None:
    async with asyncio.TaskGroup() as sending:
        for topic, payload in messages:
            sending.create_task(_try(session, topic, payload))


async def _try(session: Session, topic: str, payload: bytes) -> None:
    with contextlib.suppress(NotConnectedError):
        await session.publish(topic, payload, timeout=_PATIENCE_S)


async def _open_rounds(stack: FaultyStack) -> list[str]:
    rounds = (await stack.get("coordinator", "/rounds"))["rounds"]
    return [one["round_id"] for one in rounds if not RoundState(one["state"]).is_over]


async def _send_update(
    stack: FaultyStack, device: dict[str, str], round_id: str, proplet_id: str, number: float
) -> None:
    """Send an update, past the links.

    Raises:
        AssertionError: it was accepted.
    """
    update: dict[str, Any] = {
        "round_id": round_id,
        "proplet_id": proplet_id,
        "num_samples": 10,
        "update": {"w": [[number, number]] * 3, "b": [number, number]},
    }
    async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
        answer = await http.post(
            f"{stack.url('coordinator')}/update", json=update, auth=(device["id"], device["key"])
        )
    assert answer.status_code >= 400, (
        f"an update of {proplet_id} that {device['id']} sent was accepted in {round_id}"
    )
