"""Rounds with an aggregator and a model registry that read JSON alone, as absmach/propeller's: what works, and what is refused with a reason."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from propeller.aggregator import api as aggregator
from propeller.aggregator.settings import AggregatorSettings
from propeller.coordinator import aggregation
from propeller.coordinator.json_registry import JsonRegistry as RegistryClient
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.fl.tensors import JSON, SAFETENSORS, SAFETENSORS_SEQ, Tensors, from_safetensors, to_safetensors
from propeller.model_registry import api as registry
from propeller.model_registry.settings import ModelRegistrySettings
from propeller.process.http import ServiceClient, UnreadableAnswerError
from propeller.protocol.topics import Channel
from support.coordinator import (
    PARTICIPANTS,
    client,
    configure,
    coordinating,
    ended,
    environment,
    process,
    update,
)
from support.experiments import answering, in_state, spec, submit, variables
from support.json_services import JsonAggregator, JsonRegistry
from support.net import eventually, free_port, wait_port
from support.registries import serving

VALUES = (0.1, -2.75, 1e-3)
SAMPLES = (1, 20, 7)


def mean(values: tuple[float, ...] = VALUES, samples: tuple[int, ...] = SAMPLES) -> float:
    return float(np.average(values, weights=samples))


@contextlib.asynccontextmanager
async def _running(main: Callable[[asyncio.Event], Any], port: int) -> AsyncIterator[str]:
    stop = asyncio.Event()
    server = asyncio.create_task(main(stop))
    await asyncio.to_thread(wait_port, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        await server


@contextlib.asynccontextmanager
async def our_registry(folder: Path, port: int = 0) -> AsyncIterator[str]:
    port = port or free_port()
    chosen = ModelRegistrySettings.load(REGISTRY_PORT=port, MODELS_DIR=folder)
    async with _running(lambda stop: registry.main(chosen, stop), port) as url:
        yield url


@contextlib.asynccontextmanager
async def our_aggregator(port: int = 0) -> AsyncIterator[str]:
    port = port or free_port()
    chosen = AggregatorSettings.load(AGGREGATOR_PORT=port)
    async with _running(lambda stop: aggregator.main(chosen, stop), port) as url:
        yield url


@contextlib.asynccontextmanager
async def serving_app(peer: Any, port: int | None = None) -> AsyncIterator[str]:
    async with serving(peer.app, port) as found:
        yield f"http://127.0.0.1:{found}"


@contextlib.asynccontextmanager
async def json_stack(theirs: JsonRegistry, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A coordinator with both peers; gives a client of it."""
    async with serving_app(theirs) as models, serving_app(JsonAggregator()) as means:
        env = environment(folder / "state", models, AGGREGATOR_URL=means)
        async with coordinating(env) as http:
            yield http


async def train(
    http: httpx.AsyncClient,
    round_id: str = "r-1",
    base: int = 0,
    values: tuple[float, ...] = VALUES,
    **more: Any,
) -> dict[str, Any]:
    """A round of three updates; its status at its end."""
    reference = f"fl/models/global_model_v{base}"
    await configure(http, round_id, model_ref=reference)
    for sender, value, samples in zip(PARTICIPANTS, values, SAMPLES, strict=True):
        body = update(sender, round_id, value, num_samples=samples, base_model_uri=reference, **more)
        answer = await http.post("/update", json=body)
        assert answer.status_code == 200, answer.text
    return await ended(http, round_id)


async def reason(http: httpx.AsyncClient, round_id: str = "r-1") -> str:
    return str((await http.get(f"/rounds/{round_id}")).json()["reason"])


@pytest.fixture
def theirs(tmp_path: Path) -> JsonRegistry:
    return JsonRegistry(tmp_path / "models")


async def test_rounds_with_both(theirs: JsonRegistry, tmp_path: Path) -> None:
    """Versions that are in the registry's folder stay, those that it does not list too; each peer is told of once."""
    mixer = JsonAggregator()
    for version in (1, 2):
        theirs.put(version, {"w": [9, 9, 9], "b": 9})
    async with serving_app(theirs) as models, serving_app(mixer) as means:
        env = environment(tmp_path / "state", models, AGGREGATOR_URL=means)
        with process(env, tmp_path / "log") as one:
            async with client(env) as http:
                base = 0
                for number in range(3):
                    status = await train(http, f"r-{number}", base)
                    base = status["model_version"]
                    assert base == 3 + number
                    np.testing.assert_allclose(theirs.model(base)["w"], [mean()] * 3, rtol=1e-12)
                    assert theirs.model(base)["b"] == pytest.approx(mean(), rel=1e-12)
                one.kill()
                one.start()
                assert (await train(http, "r-9", base))["model_version"] == 6
            told = [line["msg"] for line in one.lines() if "reads JSON alone" in line["msg"]]
    assert theirs.replaced == []
    assert [text.split(" reads")[0] for text in told] == ["aggregator", "model registry"] * 2
    # Safetensors are tried once a process.
    assert mixer.asked.count("application/json") == 4
    assert len(mixer.asked) == 6


@pytest.mark.parametrize("kind", ["weights", "delta"])
async def test_it_is_the_model_that_our_own_services_make(
    theirs: JsonRegistry, tmp_path: Path, kind: str
) -> None:
    theirs.put(0, {"w": [1.5, 1.5, 1.5], "b": 1.5})
    models: list[Tensors] = []
    async with contextlib.AsyncExitStack() as stack:
        urls = [
            (await stack.enter_async_context(serving_app(theirs)), await stack.enter_async_context(serving_app(JsonAggregator()))),
            (
                await stack.enter_async_context(our_registry(tmp_path / "ours")),
                await stack.enter_async_context(our_aggregator()),
            ),
        ]  # fmt: skip
        for number, (registry_url, aggregator_url) in enumerate(urls):
            env = environment(tmp_path / f"state-{number}", registry_url, AGGREGATOR_URL=aggregator_url)
            async with coordinating(env) as http, httpx.AsyncClient(base_url=registry_url) as found:
                base = 0
                if number:
                    stored = await found.post("/models", json={"model": {"w": [1.5] * 3, "b": 1.5}})
                    base = stored.json()["version"]
                version = (await train(http, base=base, kind=kind))["model_version"]
                models.append((await found.get(f"/models/{version}")).json())
    for name in ("w", "b"):
        np.testing.assert_allclose(models[0][name], models[1][name], rtol=1e-12)


async def test_our_registry_with_an_aggregator_that_reads_json_alone(tmp_path: Path) -> None:
    """The version has its lineage, and is what its updates make."""
    base: Tensors = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
    async with our_registry(tmp_path / "models") as models, serving_app(JsonAggregator()) as means:
        env = environment(tmp_path / "state", models, AGGREGATOR_URL=means, COORDINATOR_KEEP_UPDATES="true")
        async with coordinating(env) as http, httpx.AsyncClient(base_url=models) as found:
            stored = await found.post(
                "/models", content=to_safetensors(base), headers={"content-type": SAFETENSORS}
            )
            version = (await train(http, base=stored.json()["version"]))["model_version"]
            content = (await found.get(f"/models/{version}", headers={"accept": SAFETENSORS})).content
            model = from_safetensors(content)[0]
            assert model["w"].dtype == np.float32
            np.testing.assert_allclose(model["w"], [mean()] * 3, rtol=1e-6)
            assert (await found.get(f"/models/{version}/info")).json()["lineage"]["round"] == "r-1"
            assert (await http.post(f"/models/{version}/verify")).json()["verified"] is True


async def test_a_registry_that_reads_json_alone_has_any_model(theirs: JsonRegistry, tmp_path: Path) -> None:
    """Also of several parts: each part of an update comes from its own place in it."""
    shape, generator = (700, 1000), np.random.default_rng(3)
    theirs.put(0, {"layer": np.zeros(shape).tolist(), "bias": [0.0, 0.0]})
    updates = [generator.normal(size=shape).astype(np.float32) for _ in PARTICIPANTS]
    async with serving_app(theirs) as models, our_aggregator() as means:
        env = environment(tmp_path / "state", models, AGGREGATOR_URL=means)
        async with coordinating(env) as http:
            await configure(http)
            for sender, array in zip(PARTICIPANTS, updates, strict=True):
                tensors: Tensors = {"layer": array, "bias": np.ones(2, np.float32)}
                header = {"round_id": "r-1", "proplet_id": sender, "num_samples": "10"}
                content = to_safetensors(tensors, header)
                answer = await http.post("/update", content=content, headers={"content-type": SAFETENSORS})
                assert answer.status_code == 200, answer.text
            status = await ended(http)
            # 5.6 MB as float64: more than has a JSON form.
            assert status["state"] == "failed"
            assert (
                "this model has more than 4 MiB; have MODEL_REGISTRY_URL name one of this project"
                in await reason(http)
            )


async def test_a_model_that_such_an_aggregator_does_not_know(theirs: JsonRegistry, tmp_path: Path) -> None:
    theirs.put(0, {"w": [0, 0, 0], "b": 0, "layer": [0, 0]})
    async with json_stack(theirs, tmp_path) as http:
        status = await train(http, update={"w": [1, 1, 1], "b": 1, "layer": [1, 1]})
        assert status["state"] == "failed"
        assert "gives nothing for 'layer' [2]" in await reason(http)
        assert "AGGREGATOR_URL" in await reason(http)


async def test_a_model_without_the_number_that_such_an_aggregator_adds(
    theirs: JsonRegistry, tmp_path: Path
) -> None:
    theirs.put(0, {"w": [0, 0]})
    async with json_stack(theirs, tmp_path) as http:
        assert (await train(http, update={"w": [1, 2]}))["state"] == "completed"
        assert theirs.model(1) == {"w": [1, 2]}


async def test_an_answer_that_is_lost_costs_no_version(theirs: JsonRegistry, tmp_path: Path) -> None:
    theirs.lost_answers = 2
    async with json_stack(theirs, tmp_path) as http:
        assert (await train(http))["model_version"] == 1
        assert (await train(http, "r-2", 1))["model_version"] == 2
    assert theirs.replaced == [1, 1]


async def test_rounds_that_end_together_have_versions_of_their_own(theirs: JsonRegistry) -> None:
    async with serving_app(theirs) as models, ServiceClient("model registry", models) as http:
        known = ModelRegistryClient(http)
        document = to_safetensors({"w": np.ones(3)})
        versions = await asyncio.gather(*(known.add_version(document, f"k-{number}") for number in range(10)))
        assert sorted(versions) == list(range(1, 11))
        assert await known.add_version(document, "k-3") == versions[3]


async def test_a_peer_that_was_away_is_asked_again(theirs: JsonRegistry, tmp_path: Path) -> None:
    """It is told of once, as nothing is new."""
    port, mixers = free_port(), [JsonAggregator(), JsonAggregator()]
    async with serving_app(theirs) as models:
        env = environment(tmp_path / "state", models, AGGREGATOR_URL=f"http://127.0.0.1:{port}")
        with process(env, tmp_path / "log") as one:
            async with client(env) as http:
                async with serving_app(mixers[0], port):
                    await train(http)
                task = asyncio.create_task(train(http, "r-2", 1))
                await eventually(
                    lambda: any(line["msg"] == "aggregation failed, trying again" for line in one.lines())
                )
                async with serving_app(mixers[1], port):
                    assert (await task)["model_version"] == 2
            told = [line["msg"] for line in one.lines() if line["msg"].startswith("aggregator reads")]
    assert len(told) == 1
    assert [mixer.asked for mixer in mixers] == [[SAFETENSORS_SEQ, JSON]] * 2


async def test_one_of_ours_in_the_place_of_a_peer_is_recognised(theirs: JsonRegistry, tmp_path: Path) -> None:
    """Even if nobody noticed that the other one went."""
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    env = environment(tmp_path / "state", urls[0], AGGREGATOR_URL=urls[1])
    with process(env, tmp_path / "log") as one:
        async with client(env) as http:
            async with serving_app(theirs, ports[0]), serving_app(JsonAggregator(), ports[1]):
                await train(http)
            async with (
                our_registry(tmp_path / "ours", ports[0]) as models,
                our_aggregator(ports[1]),
                httpx.AsyncClient(base_url=models) as found,
            ):
                stored = await found.post("/models", json={"version": 1, "model": theirs.model(1)})
                assert stored.status_code == 201, stored.text
                base = 1
                for number in range(2, 4):
                    base = (await train(http, f"r-{number}", base))["model_version"]
                info = (await found.get(f"/models/{base}/info")).json()
                assert info["lineage"]["round"] == "r-3"
        told = sorted(line["msg"] for line in one.lines() if "reads safetensors now" in line["msg"])
    assert told == ["aggregator reads safetensors now", "model registry reads safetensors now"]


async def test_strategies_are_refused_with_the_remedy(
    theirs: JsonRegistry, broker_port: int, tmp_path: Path
) -> None:
    """In the first round, as nobody knew before; then when an experiment is submitted."""
    channel = Channel("d-1", f"c-{tmp_path.name}"[:100])
    async with serving_app(theirs) as models, serving_app(JsonAggregator()) as means:
        env = environment(tmp_path / "state", models, AGGREGATOR_URL=means, **variables(broker_port, channel))
        async with coordinating(env) as http, answering(http, broker_port, channel):
            await submit(http, id="a", strategy="fedadam", rounds=1, model={"version": 0})
            failed = await in_state(http, "failed", experiment_id="a")
            assert "strategy 'fedadam' is asked for, and the aggregator at" in failed["reason"]
            assert "have AGGREGATOR_URL name one of this project, or use 'fedavg'" in failed["reason"]
            uniform = {"name": "fedavg", "weighting": "uniform"}
            await submit(http, id="b", strategy=uniform, rounds=3, model={"version": 0})
            done = await in_state(http, "completed", experiment_id="b")
            assert done["model_version"] == 3
            answer = await http.post(
                "/experiments", json=spec(id="c", strategy="fedadam", model={"version": 0})
            )
            assert answer.status_code == 400
            assert answer.json()["error"].startswith("strategy: strategy 'fedadam' is asked for")
            program = spec(id="d", strategy={"program": "localhost:5000/mine:v1"}, model={"version": 0})
            answer = await http.post("/experiments", json=program)
            assert (answer.status_code, "a strategy that is a program" in answer.json()["error"]) == (
                400,
                True,
            )


async def test_a_server_state_is_refused_with_the_remedy(
    theirs: JsonRegistry, broker_port: int, tmp_path: Path
) -> None:
    channel = Channel("d-1", f"c-{tmp_path.name}"[:100])
    async with serving_app(theirs) as models, our_aggregator() as means:
        env = environment(tmp_path / "state", models, AGGREGATOR_URL=means, **variables(broker_port, channel))
        async with coordinating(env) as http, answering(http, broker_port, channel):
            for name in ("a", "b"):
                await submit(http, id=name, strategy="fedadam", rounds=1, model={"version": 0})
                failed = await in_state(http, "failed", experiment_id=name)
                assert "the strategy keeps a server state, and the model registry at" in failed["reason"]
                assert "MODEL_REGISTRY_URL" in failed["reason"]
            await submit(http, id="c", strategy="fedmedian", rounds=2, model={"version": 0})
            await in_state(http, "completed", experiment_id="c")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"w": [NaN, 1, 1], "b": 1}', "NaN"),
        ("<html>", "its mean cannot be read"),
        ("[" * 100_000, "its mean cannot be read"),
        ('{"w": ["a", "b", "c"], "b": 1}', "its mean cannot be read"),
    ],
)
async def test_a_round_whose_aggregator_answers_garbage_ends(
    theirs: JsonRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, said: str
) -> None:
    """It is no service that is away: the round says why, and may be tried again."""

    async def respond(self: JsonAggregator, request: Request) -> Response:
        self.asked.append(request.headers["content-type"])
        return Response(answer, media_type=JSON) if self.asked[-1] == JSON else Response("no JSON", 400)

    monkeypatch.setattr(JsonAggregator, "_aggregate", respond)
    monkeypatch.setattr(aggregation, "UNFORESEEN_TRIES", 2)
    mixer = JsonAggregator()
    async with (
        serving_app(theirs) as models,
        serving_app(mixer) as means,
        coordinating(environment(tmp_path / "state", models, AGGREGATOR_URL=means)) as http,
    ):
        status = await train(http)
    assert (status["state"], mixer.asked.count(JSON)) == ("failed", 2)
    assert said in status["reason"]
    assert "cannot be reached" not in status["reason"]


@pytest.mark.parametrize(("listed", "kept"), [([], 40), ([2**70], 0), ([], 2**60)])
async def test_a_free_version_is_found_without_asking_for_each(
    tmp_path: Path, listed: list[int], kept: int
) -> None:
    """Also where some are not listed; a registry that has none that can be counted says so."""
    asked: list[int] = []

    async def get(request: Request) -> Response:
        asked.append(int(request.path_params["version"]))
        return Response("{}", 200 if asked[-1] <= kept else 404)

    async def versions(request: Request) -> Response:
        return (
            Response(await request.body()) if request.method == "POST" else JSONResponse({"versions": listed})
        )

    app = Starlette(
        routes=[Route("/models", versions, methods=["GET", "POST"]), Route("/models/{version:int}", get)]
    )
    async with serving(app, None) as port, ServiceClient("registry", f"http://127.0.0.1:{port}") as http:
        found = RegistryClient(http).add_version(to_safetensors({"w": np.zeros(3)}), "r-1")
        if kept == 40:
            assert await found == 41
        else:
            with pytest.raises(UnreadableAnswerError, match="or answers to all: none is free"):
                await found
    assert len(asked) < 60
