"""Rounds with the real model registry and aggregator, and a coordinator that is started as its container would be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from propeller.aggregator import api as aggregator
from propeller.aggregator.settings import AggregatorSettings
from propeller.fl.tensors import SAFETENSORS, Tensors, from_safetensors, to_safetensors
from propeller.model_registry import api as registry
from propeller.model_registry.settings import ModelRegistrySettings
from support.coordinator import (
    PARTICIPANTS,
    client,
    configure,
    ended,
    environment,
    kept_updates,
    process,
    send,
    update,
)
from support.net import eventually, free_port, wait_port


@contextlib.asynccontextmanager
async def serving_registry(folder: Path, port: int) -> AsyncIterator[httpx.AsyncClient]:
    stop = asyncio.Event()
    settings = ModelRegistrySettings.load(REGISTRY_PORT=port, MODELS_DIR=folder)
    server = asyncio.create_task(registry.main(settings, stop))
    await asyncio.to_thread(wait_port, port)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        yield http
    stop.set()
    await server


@contextlib.asynccontextmanager
async def serving_aggregator(port: int) -> AsyncIterator[None]:
    stop = asyncio.Event()
    server = asyncio.create_task(aggregator.main(AggregatorSettings.load(AGGREGATOR_PORT=port), stop))
    await asyncio.to_thread(wait_port, port)
    yield
    stop.set()
    await server


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving_registry(tmp_path / "models", free_port()) as http:
        yield http


def variables(folder: Path, models: httpx.AsyncClient, aggregator_port: int) -> dict[str, str]:
    url = f"http://127.0.0.1:{aggregator_port}"
    return environment(folder / "state", str(models.base_url).rstrip("/"), AGGREGATOR_URL=url)


async def test_rounds_one_after_the_other(models: httpx.AsyncClient, tmp_path: Path) -> None:
    port = free_port()
    env = variables(tmp_path, models, port)
    with process(env, tmp_path / "log"):
        async with serving_aggregator(port), client(env) as http:
            for number in range(3):
                name, base = f"r-{number}", f"fl/models/global_model_v{number}"
                await configure(http, name, model_ref=base)
                for sender, samples in zip(PARTICIPANTS, (1, 2, 5), strict=True):
                    body = update(sender, name, float(samples), num_samples=samples, base_model_uri=base)
                    assert (await http.post("/update", json=body)).status_code == 200
                assert (await ended(http, name))["model_version"] == number + 1
            answer = await models.get("/models/3")
            mean = (1 * 1 + 2 * 2 + 5 * 5) / 8
            assert answer.json() == {"w": [mean] * 3, "b": mean}
            assert (await models.get("/models")).json() == {"versions": [0, 1, 2, 3]}


async def test_a_model_of_many_tensors_as_safetensors(models: httpx.AsyncClient, tmp_path: Path) -> None:
    port = free_port()
    env = variables(tmp_path, models, port)
    shapes = {"conv.weight": (4, 3, 3, 3), "scale": (), "dense": (70, 50)}
    base: Tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    stored = await models.post("/models", content=to_safetensors(base), headers={"content-type": SAFETENSORS})
    version = stored.json()["version"]
    generator = np.random.default_rng(7)
    updates: list[Tensors] = [
        {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in PARTICIPANTS
    ]
    with process(env, tmp_path / "log"):
        async with serving_aggregator(port), client(env) as http:
            await configure(http, model_ref=f"fl/models/global_model_v{version}")
            for sender, tensors in zip(PARTICIPANTS, updates, strict=True):
                document = to_safetensors(
                    tensors, {"round_id": "r-1", "proplet_id": sender, "num_samples": "10"}
                )
                answer = await http.post("/update", content=document, headers={"content-type": SAFETENSORS})
                assert answer.status_code == 200, answer.text
            status = await ended(http)
    answer = await models.get(f"/models/{status['model_version']}", headers={"accept": SAFETENSORS})
    model, _metadata = from_safetensors(answer.content)
    for name in shapes:
        mean = np.mean([np.asarray(tensors[name], np.float64) for tensors in updates], axis=0)
        np.testing.assert_allclose(np.asarray(model[name], np.float64), mean, rtol=1e-6, atol=1e-7)


async def test_an_aggregator_that_is_started_late(models: httpx.AsyncClient, tmp_path: Path) -> None:
    port = free_port()
    env = variables(tmp_path, models, port)
    with process(env, tmp_path / "log") as one:
        async with client(env) as http:
            await configure(http)
            await send(http, *PARTICIPANTS)
            await eventually(
                lambda: any(line["msg"] == "aggregation failed, trying again" for line in one.lines())
            )
            assert not (await http.get("/rounds/r-1/complete")).json()["completed"]
            async with serving_aggregator(port):
                assert (await ended(http))["model_version"] == 1


async def test_an_update_with_which_there_is_no_finite_sum_is_left_out_by_name(
    models: httpx.AsyncClient, tmp_path: Path
) -> None:
    port = free_port()
    env = variables(tmp_path, models, port)
    base: Tensors = {"w": np.full(3, 3e38, np.float32)}
    stored = await models.post("/models", content=to_safetensors(base), headers={"content-type": SAFETENSORS})
    reference = f"fl/models/global_model_v{stored.json()['version']}"
    with process(env, tmp_path / "log") as one:
        async with serving_aggregator(port), client(env) as http:
            await configure(http, model_ref=reference)
            for sender, value in zip(PARTICIPANTS, (1e30, 3e38, 2e30), strict=True):
                body = update(sender, kind="delta", base_model_uri=reference, update={"w": [value] * 3})
                assert (await http.post("/update", json=body)).status_code == 200
            assert (await ended(http))["num_updates"] == 2
            detail = (await http.get("/rounds/r-1")).json()
            assert [each["proplet_id"] for each in detail["received"]] == ["p-1", "p-3"]
            [failure] = detail["failures"]
            assert failure["proplet_id"] == "p-2"
            assert "base model is 5.2e+38, that of others 3.46e+30 (" in failure["reason"]
            assert "too large for float32" in failure["reason"]
            # It stays so after a restart, and nothing is kept of it.
            one.kill()
            one.start()
            again = (await http.get("/rounds/r-1")).json()
            assert (again["received"], again["failures"]) == (detail["received"], detail["failures"])
            await eventually(lambda: kept_updates(Path(env["COORDINATOR_STATE"])) == [])


async def test_killed_again_and_again_from_the_last_update_on(
    models: httpx.AsyncClient, tmp_path: Path
) -> None:
    port = free_port()
    env = variables(tmp_path, models, port)
    with process(env, tmp_path / "log") as one:
        async with serving_aggregator(port), client(env) as http:
            for number in range(3):
                name = f"r-{number}"
                await configure(http, name)
                await send(http, *PARTICIPANTS, round_id=name, value=float(number + 1))
                # At a moment that differs from time to time: before, in or after aggregation.
                await asyncio.sleep(0.003 * number)
                one.kill()
                await asyncio.to_thread(one.start)
                status = await ended(http, name)
                assert (status["completed"], status["num_updates"]) == (True, 3)
                assert status["model_version"] == number + 1
                model = (await models.get(f"/models/{number + 1}")).json()
                assert model == {"w": [number + 1] * 3, "b": number + 1}
    assert (await models.get("/models")).json() == {"versions": [0, 1, 2, 3]}
