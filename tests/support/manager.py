"""A manager over real HTTP, and what it talks to: fake proplets over real MQTT, a fake coordinator over real HTTP."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from propeller.manager.main import main
from propeller.manager.settings import ManagerSettings
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.protocol.topics import Channel, Kind, PropletTopics
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.web.server import Bind, serve
from support.databases import database_at
from support.net import eventually, free_port

WASM = b"\0asm\x01\0\0\0" + bytes(40)


class ChannelClient:
    """A client of a channel that receives the manager's messages there, and publishes as any proplet, as S's and
    H's on the shared topics or as directed ones.
    """

    def __init__(self, port: int, channel: Channel) -> None:
        self.channel = channel
        self.session = Session(BrokerAddress("127.0.0.1", port), Credentials(uuid.uuid4().hex))
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.directed: set[str] = set()
        """Proplets that speak on their own topics."""

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(self.session.running())
        assert await self.session.wait_connected(10)
        for topic in (
            f"{self.channel.topic(Kind.START)}/#",
            f"{self.channel.topic(Kind.STOP)}/#",
            self.channel.topic(Kind.ROUND_START),
        ):
            await self.session.subscribe(topic, self.receive)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def receive(self, topic: str, payload: bytes) -> None:
        """Take a message."""
        with contextlib.suppress(MalformedMessageError):
            self.received.append((topic.removeprefix(self.channel.prefix + "/"), decode_object(payload)))

    def starts(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """Start messages, of one task or of all."""
        return [
            message
            for topic, message in self.received
            if topic.startswith(Kind.START) and task_id in {None, message["id"]}
        ]

    async def publish(self, kind: Kind | str, message: Any) -> None:
        """Publish on a topic of the channel, or on a topic as it is."""
        topic = self.channel.topic(kind) if isinstance(kind, Kind) else kind
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        await self.session.publish(topic, payload)

    async def say(self, kind: Kind, proplet_id: str, message: Any) -> None:
        """Publish what a proplet says, where it says things."""
        topics = PropletTopics(self.channel, proplet_id, compat=proplet_id not in self.directed)
        await self.publish(topics.says(kind), message)

    async def register(self, proplet_id: str, *, directed: bool = False, **metadata: Any) -> None:
        """Register, as S does or with metadata as H does, or as directed proplets do, which speaks on its own topics from now on."""
        if directed:
            self.directed.add(proplet_id)
        more = {"metadata": metadata} if metadata else {}
        await self.say(
            Kind.PROPLET_CREATE, proplet_id, {"proplet_id": proplet_id, "namespace": "default", **more}
        )

    async def send_heartbeat(self, proplet_id: str, status: str = "alive") -> None:
        """Publish a heartbeat, or a last will."""
        message = {"proplet_id": proplet_id, "status": status, "namespace": "default"}
        await self.say(Kind.PROPLET_ALIVE, proplet_id, message)

    async def send_result(
        self, task_id: str, proplet_id: str, results: Any = "8", error: str | None = None, **more: Any
    ) -> None:
        """Publish the end of a task."""
        message = {"task_id": task_id, "proplet_id": proplet_id, "results": results, "error": error, **more}
        await self.say(Kind.PROPLET_RESULTS, proplet_id, message)


class RunningManager:
    """A running manager: its HTTP API as ``http``, and a client of its channel as ``mqtt``."""

    def __init__(self, settings: ManagerSettings, http: httpx.AsyncClient, mqtt: ChannelClient) -> None:
        self.settings, self.http, self.mqtt = settings, http, mqtt

    async def add_proplets(self, *proplet_ids: str, directed: bool = False, **metadata: Any) -> None:
        """Register proplets and wait until they are alive."""
        for proplet_id in proplet_ids:
            await self.mqtt.register(proplet_id, directed=directed, **metadata)
            await eventually(partial(self.is_known, proplet_id))
            await self.mqtt.send_heartbeat(proplet_id)
            await eventually(partial(self.is_alive, proplet_id))

    async def is_known(self, proplet_id: str) -> bool:
        return (await self.http.get(f"/proplets/{proplet_id}")).status_code == 200

    async def is_alive(self, proplet_id: str) -> bool:
        answer = await self.http.get(f"/proplets/{proplet_id}")
        return answer.status_code == 200 and bool(answer.json()["alive"])

    async def task(self, task_id: str) -> dict[str, Any]:
        return dict((await self.http.get(f"/tasks/{task_id}")).json())

    async def create_task(self, **fields: Any) -> str:
        """Create a task with an image; its id."""
        answer = await self.http.post(
            "/tasks", json={"name": "add", "image_url": "localhost/add:1", **fields}
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def wait_for_state(self, task_id: str, state: int) -> dict[str, Any]:
        """Wait until a task is in a state."""

        async def reached() -> dict[str, Any] | None:
            task = await self.task(task_id)
            return task if task["state"] == state else None

        task = await eventually(reached, what=f"task {task_id} in state {state}")
        assert task is not None
        return task


def settings_for(broker_port: int, folder: Path, **given: Any) -> ManagerSettings:
    """ManagerSettings of a manager on a channel of its own."""
    unique = uuid.uuid4().hex[:12]
    fields = {
        "http_port": free_port(),
        "mqtt_address": f"tcp://127.0.0.1:{broker_port}",
        "domain_id": f"d-{unique}",
        "channel_id": f"c-{unique}",
        "client_id": f"manager-{unique}",
        "database": database_at(folder / "manager.db"),
        "compat": "any",
        **given,
    }
    return ManagerSettings.load(**fields)


@contextlib.asynccontextmanager
async def served(settings: ManagerSettings) -> AsyncIterator[httpx.AsyncClient]:
    """The manager's ``main``, and a client of its HTTP API."""
    stop = asyncio.Event()
    running = asyncio.create_task(main(settings, stop))
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{settings.http_port}", timeout=20, trust_env=False
        ) as http:
            await eventually(partial(_answers, http))
            yield http
    finally:
        stop.set()
        await running


@contextlib.asynccontextmanager
async def open_manager(broker_port: int, folder: Path, **given: Any) -> AsyncIterator[RunningManager]:
    """A manager that is connected to the broker."""
    settings = settings_for(broker_port, folder, **given)
    channel = Channel(settings.domain_id, settings.channel_id)
    async with served(settings) as http, ChannelClient(broker_port, channel) as mqtt:
        await eventually(lambda: is_connected(http))
        yield RunningManager(settings, http, mqtt)


async def is_connected(http: httpx.AsyncClient) -> bool:
    """Whether a manager is connected to its broker."""
    return bool((await http.get("/health")).json()["mqtt_connected"])


async def _answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


class FakeCoordinator:
    """Answers as a coordinator and remembers what it was asked."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.experiments: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.completed = False
        """What it says of every round."""
        self.refusal: tuple[int, str] | None = None
        self.on_configure: Callable[[], None] = lambda: None
        self.proposals: list[dict[str, Any]] = []
        self.participants: dict[str, dict[str, Any]] = {}
        """Its answer about the participants of a round; without one it keeps what is proposed first."""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{path:path}", methods=["GET", "POST"])
        async def answer(path: str, request: Request) -> JSONResponse:
            body = await request.body()
            self.requests.append(
                (f"{request.method} /{path}", str(request.query_params), dict(request.headers), body)
            )
            if self.refusal is not None:
                return JSONResponse({"error": self.refusal[1]}, self.refusal[0])
            if path == "experiments":
                self.experiments.append(json.loads(body))
                self.on_configure()
                return JSONResponse({"status": "configured"}, 201)
            if path.endswith("/participants"):
                return JSONResponse(self._keep_participants(path.split("/")[1], json.loads(body)))
            if path.endswith("/complete"):
                flat = {"round_id": path.split("/")[1], "completed": self.completed, "num_updates": 3}
                return JSONResponse({**flat, "status": flat})
            return JSONResponse({"status": "accepted"})

        return app

    def _keep_participants(self, round_id: str, proposal: dict[str, Any]) -> dict[str, Any]:
        self.proposals.append(proposal)
        if round_id in self.participants:
            return self.participants[round_id]
        if "waiting" in proposal:
            return {"participants": [], "state": "created", "task_wasm_image": "x"}
        chosen = proposal.get("participants", [])
        self.participants[round_id] = {
            "participants": chosen,
            "state": "collecting" if chosen else "failed",
            "task_wasm_image": proposal.get("program", "x"),
        }
        return self.participants[round_id]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        stop = asyncio.Event()
        server = asyncio.create_task(serve([(Bind("coordinator", "127.0.0.1", self.port), self.app())], stop))
        try:
            async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http:
                await eventually(lambda: _answers(http))
            self.requests.clear()
            yield self
        finally:
            stop.set()
            await server
