"""A participant whose updates are poison: the manager chooses it as any other device, and it answers each task with numbers that must not count."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import httpx

from faults.hostile import connected, join
from faults.stack import FaultyStack
from propeller.fl.round import RoundState
from propeller.mqtt.session import NotConnectedError, Session
from propeller.process.background import BackgroundTasks
from propeller.process.http import ServiceError
from propeller.protocol.task import TaskResult
from propeller.protocol.topics import Channel, Kind
from support.net import eventually

NAME = "proplet-poison"
"""It sorts behind the honest ones, which so have the places in a round that they always have."""

TASKS = 8
"""It leaves after so many."""

AT_MOST_S = 10.0
"""It leaves after this, also where nobody has chosen it so often: faults at the same time keep rounds from being started."""

_JOINS_S = 20.0
_BEAT_S = 1.0
_AGAIN_S = 0.2
_CLOSES_S = 300.0
"""Until a round is over: twice its time, and some more."""


def _filled(number: object) -> dict[str, Any]:
    return {"w": [[number, number]] * 3, "b": [number, number]}


POISON: Mapping[str, Mapping[str, Any]] = {
    "absurd samples": {"num_samples": 10**15},
    "more samples than the bound": {"num_samples": 10_001},
    "negative samples": {"num_samples": -5},
    "samples that are no number": {"num_samples": "many"},
    "absurd steps": {"steps": 10**12},
    "NaN": {"update": _filled(float("nan"))},
    "infinity": {"update": _filled(float("inf"))},
    "numbers that float32 does not have": {"update": _filled(1e300)},
    "a huge norm": {"update": _filled(1e30)},
    "a norm over the bound": {"update": _filled(1e3)},
    "a huge difference": {"update": _filled(1e30), "kind": "delta"},
    "other shapes": {"update": {"w": [[0.0] * 3] * 2, "b": [0.0, 0.0]}},
    "a tensor too few": {"update": {"w": [[0.0, 0.0]] * 3}},
    "a tensor too many": {"update": {**_filled(0.0), "more": [1.0]}},
    "texts": {"update": _filled("0")},
    "no tensors": {"update": {}},
    "an absurd metric": {"metrics": {"loss": -1e300}},
    "another base model": {"base_model_uri": "models/999999"},
}
"""What is wrong with an update, by its name: what it has instead of the usual fields. Some have the shapes of a small model, which is as wrong for a large one."""


async def poison(stack: FaultyStack, rng: Random) -> str:
    """A participant sends poison for some rounds: each update is refused, each round names it and leaves it out."""
    participant = _Participant(stack, rng)
    try:
        await participant.take_part()
    except (httpx.TransportError, ServiceError, TimeoutError):  # what it speaks to may be away
        return ""
    await participant.check()
    if not participant.rounds:
        return ""
    told = ", ".join(f"{count} {name}" for name, count in sorted(participant.sent.items()))
    return f"{len(participant.rounds)} rounds: {told}"


class _Participant:
    """A device without a program.

    Attributes:
        rounds: those that it had a task of.
        sent: how often each poison was.
    """

    def __init__(self, stack: FaultyStack, rng: Random) -> None:
        self._stack, self._rng = stack, rng
        self._id, self._key = "", ""
        self._starts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._background = BackgroundTasks("poison")
        self.rounds: list[str] = []
        self.sent: Counter[str] = Counter()

    async def take_part(self) -> None:
        """Join, answer some tasks, and leave.

        Raises:
            httpx.TransportError, ServiceError, TimeoutError: identity is away.
            AssertionError: an update was accepted.
        """
        async with asyncio.timeout(_JOINS_S):
            device = await join(self._stack, f"{NAME}-{self._rng.randrange(10**9)}")
        self._id, self._key = device["id"], device["key"]
        async with connected(self._stack, device) as (session, channel):
            await session.subscribe(channel.start(self._id), self._take)
            self._background.spawn(self._live(session, channel))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AT_MOST_S):
                    while len(self.rounds) < TASKS:
                        await self._answer(session, channel, await self._starts.get())
            await self._background.close()
            await _say(session, self._alive(channel), {"proplet_id": self._id, "status": "offline"})

    async def check(self) -> None:
        """See that each round that it had a task of names it, and does not count it.

        Raises:
            AssertionError: one does not.
        """
        for round_id in self.rounds:
            found = await self._wait_over(round_id)
            named = self._id in [each["proplet_id"] for each in found["failures"]]
            counted = self._id in [each["proplet_id"] for each in found["received"]]
            assert (named, counted) == (True, False), f"{self._id} sent poison to {round_id}: {found}"

    async def _wait_over(self, round_id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def is_over() -> bool:
            found.update(await self._stack.get("coordinator", f"/rounds/{round_id}"))
            return RoundState(found["state"]).is_over

        await eventually(is_over, _CLOSES_S, f"the end of {round_id}, which was sent poison")
        return found

    async def _take(self, _topic: str, payload: bytes) -> None:
        self._starts.put_nowait(json.loads(payload))

    async def _live(self, session: Session, channel: Channel) -> None:
        """Register, and once the manager knows its name, by which it has its place in a round, send heartbeats."""
        metadata = {"name": NAME, "directed": True, "liveliness_interval": _BEAT_S}
        create = {"proplet_id": self._id, "namespace": "default", "metadata": metadata}
        while not await self._is_known():
            await _say(session, channel.said(Kind.PROPLET_CREATE, self._id), create)
            await asyncio.sleep(_AGAIN_S)
        while True:
            await _say(session, self._alive(channel), {"proplet_id": self._id, "status": "alive"})
            await asyncio.sleep(_BEAT_S)

    async def _is_known(self) -> bool:
        answer = await self._stack.ask("manager", f"/proplets/{self._id}")
        return answer is not None and answer.is_success and answer.json()["name"].startswith(NAME)

    async def _answer(self, session: Session, channel: Channel, start: dict[str, Any]) -> None:
        """Send a poisonous update for a task, and end it as a device does whose update was refused."""
        env, name = start["env"], self._rng.choice(sorted(POISON))
        update = {
            "round_id": env["ROUND_ID"],
            "proplet_id": self._id,
            "base_model_uri": env["MODEL_URI"],
            "num_samples": 10,
            "metrics": {"loss": 0.5, "accuracy": 0.5},
            "update": _filled(0.0),
            **POISON[name],
        }
        self.rounds.append(env["ROUND_ID"])
        refusal = await self._send(update)
        self.sent[name] += 1
        result = TaskResult(
            task_id=start["id"], proplet_id=self._id, error=f"the update was refused: {refusal}"
        )
        await _say(session, channel.said(Kind.PROPLET_RESULTS, self._id), result.encode())

    async def _send(self, update: dict[str, Any]) -> str:
        """Send an update until it is answered; why it was refused."""
        async with httpx.AsyncClient(timeout=5, trust_env=False, auth=(self._id, self._key)) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    url = f"{self._stack.url('coordinator')}/update"
                    answer = await http.post(
                        url, content=json.dumps(update), headers={"Content-Type": "application/json"}
                    )
                    assert answer.status_code >= 400, (
                        f"poison of {self._id} was accepted: {json.dumps(update)[:500]}"
                    )
                    if answer.status_code < 500:
                        return answer.text
                await asyncio.sleep(_AGAIN_S)

    def _alive(self, channel: Channel) -> str:
        return channel.said(Kind.PROPLET_ALIVE, self._id)


async def _say(session: Session, topic: str, message: dict[str, Any] | bytes) -> None:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    with contextlib.suppress(NotConnectedError):
        await session.publish(topic, payload)
