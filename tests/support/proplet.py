"""What a proplet lives among, scripted: a manager, a proxy, and the HTTP services."""

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.proplet.main import main
from propeller.proplet.settings import PropletSettings
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.multipart import MULTIPART, pack, packed_type
from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.topics import EVERYONE, Channel, Kind, parse_topic
from propeller.web.server import Bind, serve
from support.net import eventually, free_port, wait_port
from support.programs import digest, echo

MODEL = {"w": [0.0, 0.0, 0.0], "b": 0.0}
SAFETENSORS = "application/vnd.safetensors"
IMAGE = "registry.test/echo:latest"


def safetensors(data: bytes = b"\0" * 16) -> bytes:
    """A document with one float32 tensor ``w``."""
    table: dict[str, Any] = {"w": {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}}
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


class Services:
    """Model registry, data store and coordinator behind one address."""

    def __init__(self) -> None:
        self.models: dict[int, Any] = {0: MODEL}
        self.tensors: dict[int, bytes] = {0: safetensors()}
        self.states: dict[int, bytes] = {}
        """Server states, by model version."""
        self.experiments: dict[str, str] = {}
        """The states of experiments."""
        self.rounds: dict[str, Any] = {}
        """Rounds as the coordinator tells of them."""
        self.datasets: dict[str, Any] = {}
        self.updates: list[Any] = []
        self.update_types: list[str] = []
        self.update_codings: list[str | None] = []
        self.answers: list[int] = []
        """Statuses that the next updates are answered with."""
        self.asked: list[tuple[str, int]] = []
        """Every GET: path and status."""
        self.away = 0
        """How many of the next GETs of models and datasets are answered with 503."""
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/models/{version:int}", self._model),
                Route("/models/{version:int}/state", self._state),
                Route("/experiments/{id}", self._experiment),
                Route("/rounds/{id}", self._round),
                Route("/datasets/{proplet_id}", self._dataset),
                Route("/update", self._update, methods=["POST"]),
            ]
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Services"]:
        stop = asyncio.Event()
        server = asyncio.create_task(serve([(Bind("test", "127.0.0.1", self.port), self.app())], stop))
        await asyncio.to_thread(wait_port, self.port)
        try:
            yield self
        finally:
            stop.set()
            await server

    async def _model(self, request: Request) -> Response:
        version = request.path_params["version"]
        if self._is_away():
            return self._answer(request, JSONResponse({"error": "it starts"}, 503))
        if version not in self.models:
            return self._answer(request, JSONResponse({"error": "no such model"}, 404))
        accept, tensors = request.headers.get("accept", ""), self.tensors.get(version, b"")
        if SAFETENSORS in accept and len(tensors) > LARGE_BYTES:
            return self._answer(request, Response(tensors, media_type=SAFETENSORS))
        answer = JSONResponse(self.models[version])
        if MULTIPART in accept and tensors:
            both = pack({"application/json": bytes(answer.body), SAFETENSORS: tensors}, "Limit")
            return self._answer(request, Response(both, media_type=packed_type("Limit")))
        return self._answer(request, answer)

    def _is_away(self) -> bool:
        self.away -= 1
        return self.away >= 0

    async def _state(self, request: Request) -> Response:
        state = self.states.get(request.path_params["version"])
        if state is None:
            return self._answer(request, JSONResponse({"error": "no server state"}, 404))
        return self._answer(request, Response(state, media_type=SAFETENSORS))

    async def _experiment(self, request: Request) -> Response:
        state = self.experiments.get(request.path_params["id"])
        if state is None:
            return self._answer(request, JSONResponse({"error": "no such experiment"}, 404))
        return self._answer(request, JSONResponse({"id": request.path_params["id"], "state": state}))

    async def _round(self, request: Request) -> Response:
        found = self.rounds.get(request.path_params["id"])
        if found is None:
            return self._answer(request, JSONResponse({"error": "no such round"}, 404))
        return self._answer(request, JSONResponse(found))

    async def _dataset(self, request: Request) -> Response:
        if self._is_away():
            return self._answer(request, JSONResponse({"error": "it starts"}, 503))
        dataset = self.datasets.get(request.path_params["proplet_id"])
        if dataset is None:
            return self._answer(request, JSONResponse({"error": "no such dataset"}, 404))
        return self._answer(request, JSONResponse(dataset))

    def _answer(self, request: Request, response: Response) -> Response:
        tag = f'"{digest(bytes(response.body))}"'
        if response.status_code == 200:
            if request.headers.get("if-none-match") == tag:
                response = Response(status_code=304)
            response.headers["etag"] = tag
        self.asked.append((request.url.path, response.status_code))
        return response

    async def _update(self, request: Request) -> Response:
        body = await request.body()
        if self.answers and (status := self.answers.pop(0)) != 200:
            return JSONResponse({"error": "no, because"}, status)
        self.update_types.append(request.headers["content-type"])
        self.update_codings.append(request.headers.get("content-encoding"))
        if self.update_codings[-1] == "zstd":
            body = zstandard.ZstdDecompressor().stream_reader(body).read()
        self.updates.append(json.loads(body) if self.update_types[-1] == "application/json" else body)
        return JSONResponse({"status": "accepted"})


class Peers:
    """The manager and the proxy, scripted, on one MQTT session."""

    def __init__(self, port: int) -> None:
        self.channel = Channel(f"d{uuid.uuid4().hex[:8]}", f"c{uuid.uuid4().hex[:8]}")
        self.session = Session(BrokerAddress("127.0.0.1", port), Credentials(uuid.uuid4().hex))
        self.received: list[tuple[Kind, dict[str, Any]]] = []
        self.programs: dict[str, bytes] = {IMAGE: echo()}
        self.requests: list[ProgramRequest] = []
        self.sent_bytes = 0
        self.chunk_size = 100
        self.silent = False
        self.shuffle: Callable[[list[ProgramChunk]], list[ProgramChunk]] = list
        """What happens to a program's chunks on their way."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Peers"]:
        async with self.session.running():
            for topic in ("control/proplet/+", "control/proplet/+/+"):
                await self.session.subscribe(f"{self.channel.prefix}/{topic}", self._record)
            await self.session.subscribe(f"{self.channel.prefix}/fl/#", self._record)
            for topic in (
                self.channel.topic(Kind.REGISTRY_REQUEST),
                self.channel.said(Kind.REGISTRY_REQUEST, EVERYONE),
            ):
                await self.session.subscribe(topic, self._answer_request)
            assert await self.session.wait_connected(10)
            yield self

    def messages(self, kind: Kind) -> list[dict[str, Any]]:
        """What was received of a kind."""
        return [message for received, message in self.received if received is kind]

    async def alive(self, proplet_id: str) -> None:
        """Wait until a proplet says that it lives."""
        await eventually(
            lambda: any(
                one["proplet_id"] == proplet_id and one["status"] == "alive"
                for one in self.messages(Kind.PROPLET_ALIVE)
            )
        )

    def result(self, task_id: str) -> dict[str, Any] | None:
        """The last result of a task."""
        return next(
            (one for one in reversed(self.messages(Kind.PROPLET_RESULTS)) if one["task_id"] == task_id), None
        )

    async def result_of(self, task_id: str, timeout: float = 10.0) -> dict[str, Any]:
        """Wait for a task's result."""
        found = await eventually(lambda: self.result(task_id), timeout, f"result of {task_id}")
        assert found is not None
        return found

    async def publish(self, topic: str, message: Any) -> None:
        """Publish a message, or bytes as they are."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        await self.session.publish(topic, payload)

    async def start(self, receiver: str, task_id: str = "", *, shared: bool = False, **fields: Any) -> str:
        """Send a start for a proplet, on its own topic or the shared one; gives the task's id."""
        task_id = task_id or uuid.uuid4().hex
        topic = self.channel.topic(Kind.START) if shared else self.channel.start(receiver)
        message = {"id": task_id, "name": "_start", "image_url": IMAGE, "proplet_id": receiver} | fields
        await self.publish(topic, message)
        return task_id

    async def _record(self, topic: str, payload: bytes) -> None:
        parsed = parse_topic(topic)
        assert parsed is not None
        self.received.append((parsed.kind, json.loads(payload)))

    async def _answer_request(self, _topic: str, payload: bytes) -> None:
        request = ProgramRequest.decode(payload)
        self.requests.append(request)
        if self.silent:
            return
        content = self.programs.get(request.app_name)
        if request.proplet_id is None:
            await self._send_chunks(request, content or b"", None, self.channel.topic(Kind.REGISTRY_CHUNK))
        elif content is None:
            error = ResolvedProgram(app_name=request.app_name, error="no such image")
            await self.session.publish(self.channel.answers(request.proplet_id), error.encode())
        elif request.digest is None:
            resolved = ResolvedProgram(
                app_name=request.app_name,
                digest=digest(content),
                size=len(content),
                total_chunks=-(-len(content) // self.chunk_size),
            )
            await self.session.publish(self.channel.answers(request.proplet_id), resolved.encode())
        else:
            await self._send_chunks(request, content, request.digest, self.channel.chunks(request.digest))

    async def _send_chunks(
        self, request: ProgramRequest, content: bytes, named: str | None, topic: str
    ) -> None:
        parts = [content[at : at + self.chunk_size] for at in range(0, len(content), self.chunk_size)]
        chunks = [
            ProgramChunk(
                app_name=request.app_name,
                chunk_idx=number,
                total_chunks=len(parts),
                data=base64.b64encode(part).decode(),
                digest=named,
                size=len(content) if named else None,
            )
            for number, part in enumerate(parts)
            if request.missing is None or number in request.missing
        ]
        for chunk in self.shuffle(chunks):
            self.sent_bytes += len(chunk.payload())
            await self.session.publish(topic, chunk.encode())


def settings(
    peers: Peers, services: Services | None, folder: Path, port: int, **given: Any
) -> PropletSettings:
    """A proplet's settings among these peers."""
    url = services.url if services else None
    return PropletSettings.load(
        **{
            "domain_id": peers.channel.domain_id,
            "channel_id": peers.channel.channel_id,
            "client_id": f"proplet-{uuid.uuid4().hex[:8]}",
            "client_key": "key",
            "mqtt_address": f"tcp://127.0.0.1:{port}",
            "state": folder,
            "model_registry_url": url,
            "data_store_url": url,
            "coordinator_url": url,
            **given,
        }
    )


@contextlib.asynccontextmanager
async def proplet(chosen: PropletSettings) -> AsyncIterator[str]:
    """A proplet through its ``main``; gives its id."""
    stop = asyncio.Event()
    running = asyncio.create_task(main(chosen, stop))
    try:
        yield chosen.client_id
    finally:
        stop.set()
        await running


@dataclass
class World:
    """A proplet's surroundings; ``join`` starts one."""

    peers: Peers
    services: Services
    port: int
    folder: Path
    stack: contextlib.AsyncExitStack

    async def join(self, **given: Any) -> str:
        """Start a proplet with a dataset, and wait until it is there; gives its id."""
        chosen = settings(self.peers, self.services, self.folder, self.port, **given)
        self.services.datasets.setdefault(chosen.client_id, {"data": [{"x": [1, 2, 3], "y": 1}] * 64})
        me = await self.stack.enter_async_context(proplet(chosen))
        await self.peers.alive(me)
        return me


def log_file(chosen: PropletSettings) -> Path:
    """Where a proplet's process writes its log."""
    return chosen.folder.parent / f"{chosen.client_id}.log"


@contextlib.contextmanager
def process(chosen: PropletSettings) -> Iterator[subprocess.Popen[bytes]]:
    """A proplet as a process of its own; killed at the end if it still runs."""
    given = chosen.model_dump(
        mode="json", exclude={"task_fuel", "external_runtime", "description", "location", "policy"}
    )
    code = (
        "import json, sys\n"
        "from propeller.process import logs, run\n"
        "from propeller.proplet.main import main\n"
        "from propeller.proplet.settings import PropletSettings\n"
        "logs.configure('proplet')\n"
        "settings = PropletSettings.load(**json.loads(sys.argv[1]))\n"
        "sys.exit(run.run(lambda stop: main(settings, stop)))\n"
    )
    with log_file(chosen).open("ab") as stderr:
        child = subprocess.Popen([sys.executable, "-c", code, json.dumps(given)], stderr=stderr)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
