"""A coordinator to test: through its ``main`` in this process, or as a process that can be killed; and its peers.

The peers here speak the contract of the model registry and the aggregator over real HTTP, and can pause at a
point or fail when told to, which the real ones cannot. The tests of whole rounds use the real ones.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from propeller.coordinator.aggregation import Aggregation
from propeller.coordinator.aggregator_client import AggregatorClient
from propeller.coordinator.api import create_api
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.central_evaluation import CentralEvaluations
from propeller.coordinator.experiment_store import ExperimentStore
from propeller.coordinator.experiments import Experiments
from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.large_updates import LargeUpdates
from propeller.coordinator.main import main
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.service import Coordinator
from propeller.coordinator.settings import CoordinatorSettings
from propeller.coordinator.store import RoundStore
from propeller.coordinator.telemetry import CoordinatorMetrics, RoundTelemetry
from propeller.coordinator.verification import Verification
from propeller.fl.tensors import (
    Tensors,
    encode,
    from_json,
    from_safetensors,
    read_documents,
    specs_of,
    to_safetensors,
)
from propeller.fl.tensors.safetensors import read_header
from propeller.process.http import ServiceClient
from propeller.store.blobs import BlobStore
from propeller.store.database import Database
from propeller.tensors.safetensors import write_header
from propeller.web.auth import Admission
from propeller.web.server import Bind, serve
from support.command_server import Command
from support.databases import database_at, execute
from support.net import free_port, wait_port

BASE = {"w": [0.0, 0.0, 0.0], "b": 0.0}
PARTICIPANTS = ["p-1", "p-2", "p-3"]


class Peers:
    """The model registry and the aggregator in one app; what was asked of them; how they should behave."""

    def __init__(self) -> None:
        self.versions: dict[int, Tensors] = {0: from_json(BASE)}
        self.keys: dict[str, int] = {}
        self.aliases: dict[str, int] = {}
        self.aggregations: list[list[str]] = []
        self.plans: list[dict[str, Any]] = []
        self.unavailable: set[str] = set()
        self.refusing: set[str] = set()
        self.returns_wrong_shape = False
        self.requests: list[str] = []
        self.reached = asyncio.Event()
        self.gates: dict[str, asyncio.Event] = {}
        self.app = Starlette(
            routes=[
                Route("/models/{version:int}", self._model),
                Route("/models/{name}/info", self._info),
                Route("/aliases/{name:path}", self._set_alias, methods=["PUT"]),
                Route("/models", self._store, methods=["POST"]),
                Route("/aggregate", self._aggregate, methods=["POST"]),
            ]
        )

    def pause_at(self, point: str) -> asyncio.Event:
        """Pause at a point (``aggregate``, ``store``, ``stored``) until the event that is returned is set."""
        self.reached.clear()
        self.gates[point] = asyncio.Event()
        return self.gates[point]

    async def _answer_early(self, point: str) -> Response | None:
        self.requests.append(point)
        if point in self.refusing:
            return JSONResponse({"error": f"{point} says no"}, 422)
        if point in self.unavailable:
            return JSONResponse({"error": f"{point} is down"}, 503)
        if point in self.gates:
            self.reached.set()
            await self.gates[point].wait()
        return None

    async def _model(self, request: Request) -> Response:
        if (problem := await self._answer_early("model")) is not None:
            return problem
        version = request.path_params["version"]
        if version not in self.versions:
            return JSONResponse({"error": f"Model not found: {version}"}, 404)
        kind, body = encode(self.versions[version], request.headers.get("accept"))
        return Response(body, media_type=kind)

    async def _info(self, request: Request) -> Response:
        if (problem := await self._answer_early("info")) is not None:
            return problem
        name = request.path_params["name"]
        version = max(self.versions) if name == "latest" else int(name)
        if version not in self.versions:
            return JSONResponse({"error": f"Model not found: {name}"}, 404)
        specs = specs_of(self.versions[version])
        tensors = {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in specs.items()}
        return JSONResponse({"version": version, "tensors": tensors})

    async def _set_alias(self, request: Request) -> Response:
        if (problem := await self._answer_early("alias")) is not None:
            return problem
        self.aliases[request.path_params["name"]] = (await request.json())["version"]
        return JSONResponse({"status": "set"})

    async def _store(self, request: Request) -> Response:
        if (problem := await self._answer_early("store")) is not None:
            return problem
        tensors, _ = from_safetensors(await request.body())
        key = request.headers["idempotency-key"]
        if key not in self.keys:
            self.keys[key] = max(self.versions) + 1
            self.versions[self.keys[key]] = {name: array.copy() for name, array in tensors.items()}
        await self._answer_early("stored")
        return JSONResponse({"version": self.keys[key], "status": "stored"}, 201)

    async def _aggregate(self, request: Request) -> Response:
        if (problem := await self._answer_early("aggregate")) is not None:
            return problem
        documents = [bytes(document) async for document in read_documents(request.stream())]
        plan = json.loads(read_header(documents[0]).metadata["plan"])
        self.plans.append(plan)
        contributions, updates = plan["contributions"], documents[1 + plan["bases"] + plan["state"] :]
        total = sum(contribution["num_samples"] for contribution in contributions)
        base = from_safetensors(documents[1])[0]
        mean: dict[str, Any] = {name: np.zeros(array.shape) for name, array in base.items()}
        for contribution, document in zip(contributions, updates, strict=True):
            for name, array in from_safetensors(document)[0].items():
                mean[name] = mean[name] + contribution["num_samples"] * array.astype(np.float64)
        self.aggregations.append([contribution["proplet_id"] for contribution in contributions])
        if self.returns_wrong_shape:
            mean["w"] = mean["w"][:1]
        model = {name: np.asarray(value / total).astype(base[name].dtype) for name, value in mean.items()}
        result, _ = write_header({}, {"result": json.dumps({"values": {}, "parts": 1})})
        return Response(result + to_safetensors(model))


@contextlib.asynccontextmanager
async def serving_peers() -> AsyncIterator[tuple[Peers, str]]:
    """The peers on a port of loopback; gives them and their URL."""
    peers = Peers()
    async with serving(peers.app) as url:
        try:
            yield peers, url
        finally:
            for gate in peers.gates.values():
                gate.set()


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """An app on a port of loopback; gives its URL."""
    port, stop = free_port(), asyncio.Event()
    server = asyncio.create_task(serve([(Bind("test", "127.0.0.1", port), app)], stop))
    try:
        await asyncio.to_thread(wait_port, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        await server


def environment(folder: Path, peers: str, **more: str) -> dict[str, str]:
    """A coordinator's variables: its state in ``folder``, both peers at one URL, no MQTT unless said."""
    return {
        "COORDINATOR_STATE": str(folder),
        "COORDINATOR_DATABASE": database_at(folder / "coordinator.db"),
        "COORDINATOR_PORT": str(free_port()),
        "MODEL_REGISTRY_URL": peers,
        "AGGREGATOR_URL": peers,
        "MQTT_BROKER": "off",
        **more,
    }


def settings(env: dict[str, str]) -> CoordinatorSettings:
    """CoordinatorSettings from variables that are not this process's."""
    return CoordinatorSettings.load(**env)


@contextlib.asynccontextmanager
async def coordinating(env: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A coordinator through its ``main`` in this process; gives a client of its API."""
    stop = asyncio.Event()
    running = asyncio.create_task(main(settings(env), stop))
    try:
        async with client(env) as http:
            opened = asyncio.create_task(asyncio.to_thread(wait_port, int(env["COORDINATOR_PORT"])))
            await asyncio.wait([opened, running], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            await opened
            yield http
    finally:
        stop.set()
        await running


@contextlib.asynccontextmanager
async def assembled(folder: Path, admission: Admission | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A coordinator without a server and without peers, which knows version 0: for what ends before aggregation."""
    database = Database(database_at(folder / "coordinator.db"))
    store, metrics = RoundStore(database), CoordinatorMetrics()
    await store.create()
    async with ServiceClient("nobody", "http://127.0.0.1:1", retry_delays=()) as nobody:
        registry = ModelRegistryClient(nobody)
        base = from_json(BASE)
        registry.remember(0, to_safetensors(base), specs_of(base), None)
        aggregator = AggregatorClient(nobody)
        updates = KeptUpdates(BlobStore(folder / "updates"), database)
        bases = BaseModels(registry, folder)
        aggregation = Aggregation(updates, registry, aggregator, bases, retry_delays=())
        service = Coordinator(
            store,
            registry,
            updates,
            aggregation,
            RoundTelemetry(metrics),
            bases,
            keep_failed_s=60.0,
        )
        experiments = Experiments(
            ExperimentStore(database),
            service,
            registry,
            aggregator,
            publisher=None,
            central=CentralEvaluations(service, registry, None, _no_programs),
            max_running=1,
            keep_events_s=60.0,
        )
        verification = Verification(registry, updates, aggregation, service.find_round)
        transport = httpx.ASGITransport(
            create_api(
                service,
                experiments,
                metrics,
                verification=verification,
                large=LargeUpdates(folder),
                admission=admission,
            )
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as http:
            yield http
        await service.close()
    await database.close()


def _no_programs() -> NoReturn:
    raise AssertionError("nothing is evaluated here")


def kept_updates(state: Path) -> list[str]:
    """The digests of the updates that the coordinator with this state keeps, in its database and as files."""
    found = [row[0] for row in execute(state / "coordinator.db", "SELECT digest FROM update_documents")]
    return sorted([*found, *(path.name for path in (state / "updates").iterdir())])


def lose_updates(state: Path, digest: str = "%") -> None:
    """Take updates out of a state, wherever they are: all, or one."""
    execute(state / "coordinator.db", "DELETE FROM update_documents WHERE digest LIKE :digest", digest=digest)
    for path in (state / "updates").glob("*" if digest == "%" else digest):
        path.unlink()


class Process:
    """A coordinator in a process of its own, to be killed."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self.env, self.log = env, log
        self._process: Command | None = None

    def start(self) -> None:
        """Start it; ready once its port is open."""
        with self.log.open("ab") as log:
            env = {**{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}, **self.env}
            self._process = Command(["serve", "coordinator"], env, stdout=log, stderr=log)
        wait_port(int(self.env["COORDINATOR_PORT"]), 20)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def process(env: dict[str, str], log: Path) -> Iterator[Process]:
    """A coordinator's process, started; killed at the end."""
    one = Process(env, log)
    try:
        one.start()
        yield one
    finally:
        one.kill()


def client(env: dict[str, str]) -> httpx.AsyncClient:
    """A client of a coordinator's API, which may be killed between two requests: none uses the connection of another."""
    url = f"http://127.0.0.1:{env['COORDINATOR_PORT']}"
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, limits=limits)


def experiment(round_id: str = "r-1", **more: Any) -> dict[str, Any]:
    """An experiment's body: three participants, all of them needed."""
    return {
        "experiment_id": f"exp-{round_id}",
        "round_id": round_id,
        "model_ref": "fl/models/global_model_v0",
        "participants": PARTICIPANTS,
        "hyperparams": {"epochs": 1, "lr": 0.01},
        "k_of_n": 3,
        "timeout_s": 60,
        "task_wasm_image": "localhost:5000/fl:v1",
        **more,
    }


def update(proplet_id: str = "p-1", round_id: str = "r-1", value: float = 1.0, **more: Any) -> dict[str, Any]:
    """An update's body: every number is ``value``."""
    return {
        "round_id": round_id,
        "proplet_id": proplet_id,
        "base_model_uri": "fl/models/global_model_v0",
        "num_samples": 64,
        "metrics": {"loss": 0.5},
        "update": {"w": [value, value, value], "b": value},
        **more,
    }


async def configure(http: httpx.AsyncClient, round_id: str = "r-1", **more: Any) -> None:
    """Set a round up."""
    answer = await http.post("/experiments", json=experiment(round_id, **more))
    assert answer.status_code == 201, answer.text


async def send(http: httpx.AsyncClient, *proplet_ids: str, round_id: str = "r-1", value: float = 1.0) -> None:
    """Send an update for each of some proplets; every one must be accepted."""
    for proplet_id in proplet_ids:
        answer = await http.post("/update", json=update(proplet_id, round_id, value))
        assert (answer.status_code, answer.json()) == (200, {"status": "accepted"}), answer.text


async def fail(
    http: httpx.AsyncClient, proplet_id: str, reason: str = "no such image", round_id: str = "r-1"
) -> dict[str, Any]:
    """Report a failure; the answer, which must be 200."""
    body = {"proplet_id": proplet_id, "reason": reason}
    answer = await http.post(f"/rounds/{round_id}/failures", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(http: httpx.AsyncClient, round_id: str = "r-1") -> dict[str, Any]:
    """The status of a round once it is over."""
    status: dict[str, Any] = (await http.get(f"/rounds/{round_id}/complete?wait_s=20")).json()
    assert status["state"] in {"completed", "failed"}, status
    return status
