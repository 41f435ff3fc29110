"""A manager and its proplets for tests of the coordinator's experiments: real MQTT and HTTP, no programs."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.process.background import BackgroundTasks
from propeller.protocol.topics import Channel, Kind
from support.coordinator import PARTICIPANTS
from support.net import eventually

IMAGE = "localhost:5000/fl:v1"
PINNED = f"localhost:5000/fl@sha256:{'a' * 64}"


def variables(port: int, channel: Channel) -> dict[str, str]:
    """A coordinator's variables about MQTT."""
    return {
        "MQTT_BROKER": f"tcp://127.0.0.1:{port}",
        "MQTT_CLIENT_ID": f"coordinator-{uuid.uuid4().hex}",
        "COORDINATOR_DOMAIN_ID": channel.domain_id,
        "COORDINATOR_CHANNEL_ID": channel.channel_id,
    }


class FakeFleet:
    """Answers each start of a round at once: who takes part, and what each of them sends.

    Attributes:
        starts: the messages that started rounds.
        stops: those that stopped tasks.
        choose: the proposal for a start; ``None`` to say nothing.
        send: what a participant does: returns an update's fields beside the usual ones, a text for a failure, or ``None``
            to stay silent.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.starts: list[dict[str, Any]] = []
        self.stops: list[dict[str, Any]] = []
        self.choose: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda _start: {
            "participants": PARTICIPANTS,
            "program": PINNED,
        }
        self.send: Callable[[dict[str, Any], str], dict[str, Any] | str | None] = lambda _start, _name: {}
        self._background = BackgroundTasks("fleet")
        self._answered: set[str] = set()

    @property
    def round_ids(self) -> list[str]:
        """Of the rounds that were started, without repetitions."""
        return list(dict.fromkeys(start["round_id"] for start in self.starts))

    async def take_start(self, _topic: str, payload: bytes) -> None:
        """Answer the start of a round."""
        start = json.loads(payload)
        self.starts.append(start)
        self._background.spawn(self.answer(start))

    async def take_stop(self, _topic: str, payload: bytes) -> None:
        """Note that tasks were stopped."""
        self.stops.append(json.loads(payload))

    async def answer(self, start: dict[str, Any]) -> None:
        """Say who takes part, and send what they send."""
        proposal = self.choose(start)
        if proposal is None:
            return
        with contextlib.suppress(httpx.TransportError):  # the coordinator was killed
            answer = await self.http.post(f"/rounds/{start['round_id']}/participants", json=proposal)
            assert answer.status_code == 200, answer.text
            for name in answer.json()["participants"]:
                await self.speak(start, name)

    async def speak(self, start: dict[str, Any], name: str) -> None:
        """Send what a participant sends."""
        said = self.send(start, name)
        round_id = start["round_id"]
        if said is None:
            return
        if isinstance(said, str):
            failure = {"proplet_id": name, "reason": said}
            await self.http.post(f"/rounds/{round_id}/failures", json=failure)
            return
        value = float(start["number"] + PARTICIPANTS.index(name))
        body = {
            "round_id": round_id,
            "proplet_id": name,
            "base_model_uri": start["model_uri"],
            "num_samples": 10,
            "metrics": {"loss": 1 / start["number"], "accuracy": start["number"] / 10},
            **({"update": {"w": [value] * 3, "b": value}} if start["mode"] == "train" else {}),
            **said,
        }
        await self.http.post("/update", json=body)

    async def close(self) -> None:
        """Say nothing any more."""
        await self._background.close()


@contextlib.asynccontextmanager
async def answering(http: httpx.AsyncClient, port: int, channel: Channel) -> AsyncIterator[FakeFleet]:
    """A fleet on a channel, which speaks to a coordinator."""
    session = Session(BrokerAddress("127.0.0.1", port), Credentials(f"fleet-{uuid.uuid4().hex}"))
    fleet = FakeFleet(http)
    async with session.running():
        assert await session.wait_connected(10)
        await session.subscribe(channel.topic(Kind.ROUND_START), fleet.take_start)
        await session.subscribe(channel.topic(Kind.ROUND_STOP), fleet.take_stop)
        try:
            yield fleet
        finally:
            await fleet.close()


def spec(**fields: Any) -> dict[str, Any]:
    """What an experiment is asked for: three rounds from version 0."""
    return {"id": "e", "program": IMAGE, "rounds": 3, "model": {"version": 0}, **fields}


async def submit(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Post an experiment; the answer, which must be 201."""
    answer = await http.post("/experiments", json=spec(**fields))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def detail(http: httpx.AsyncClient, experiment_id: str = "e") -> dict[str, Any]:
    """An experiment as it is."""
    answer = await http.get(f"/experiments/{experiment_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def in_state(
    http: httpx.AsyncClient, *states: str, experiment_id: str = "e", timeout: float = 30
) -> dict[str, Any]:
    """An experiment once it is in one of these states."""

    async def reached() -> dict[str, Any] | None:
        found = await detail(http, experiment_id)
        return found if found["state"] in states else None

    found = await eventually(reached, timeout=timeout, what=f"{experiment_id} is {' or '.join(states)}")
    assert found is not None
    return found


async def history(http: httpx.AsyncClient, experiment_id: str = "e") -> list[dict[str, Any]]:
    """The rounds of an experiment."""
    return list((await http.get(f"/experiments/{experiment_id}/history")).json()["rounds"])


async def events(
    http: httpx.AsyncClient, experiment_id: str = "e", after: int | None = None
) -> list[tuple[int, str, dict[str, Any]]]:
    """Every event to the end of the stream: number, name, data."""
    headers = {} if after is None else {"last-event-id": str(after)}
    found = []
    async with (
        asyncio.timeout(30),
        http.stream("GET", f"/experiments/{experiment_id}/events", headers=headers) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found
