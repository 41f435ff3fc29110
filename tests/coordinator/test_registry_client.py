"""What the coordinator asks of the model registry, against a real one and one that knows models only."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.errors import NotFoundError
from propeller.fl.tensors import Tensors, from_json, from_safetensors, to_safetensors
from propeller.process.http import ServiceClient, ServiceError
from propeller.protocol.models import SENT_ALONG_BYTES, SentModel
from propeller.protocol.multipart import unpack
from support.coordinator import BASE, Peers
from support.model_registry import serving_registry

MODEL: Tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(3, np.int64)}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[ModelRegistryClient]:
    async with (
        serving_registry(tmp_path) as url,
        ServiceClient("model registry", url, retry_delays=()) as http,
    ):
        yield ModelRegistryClient(http)


async def test_types_and_shapes_of_a_version(registry: ModelRegistryClient) -> None:
    version = await registry.add_version(to_safetensors(MODEL, {"lineage": '{"number":1}'}), "k-1")
    assert await registry.specs(version) == {"w": ("F32", (2, 3)), "steps": ("I64", ())}
    assert (await registry.info("latest"))["lineage"] == {"number": 1}
    with pytest.raises(NotFoundError, match="no version 7"):
        await registry.specs(7)


async def test_a_small_model_that_was_just_stored_is_sent_along_as_the_registry_would_send_it(
    registry: ModelRegistryClient, tmp_path: Path
) -> None:
    update = {"proplet_id": "who-else-took-part", "digest": "ab" * 32, "num_samples": 3}
    lineage = {"lineage": json.dumps({"experiment": "e", "number": 1, "note": "é", "updates": [update]})}
    small: Tensors = {**MODEL, "h": np.array([0.1, 2], np.float16), "ok": np.array([True, False])}
    document = to_safetensors(small, lineage)
    version = await registry.add_version(document, "k-1")
    assert registry.sent_along(version) is None  # who asks for it would have to ask the registry
    registry.remember(version, document, {}, None)
    sent = registry.sent_along(version)
    assert sent is not None
    async with serving_registry(tmp_path) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.get(f"/models/{version}", headers={"accept": "multipart/mixed"})
    forms = unpack(answer.headers["content-type"], answer.content)
    assert forms == {"application/json": sent.text.encode(), "application/vnd.safetensors": sent.tensors}
    assert b"who-else" not in sent.tensors
    assert SentModel.decode(sent.model_dump_json()) == sent
    long = to_safetensors({"w": np.zeros(SENT_ALONG_BYTES // 4, np.float32)})
    registry.remember(version, long, {}, None)
    assert registry.sent_along(version) is None


async def test_a_registry_that_knows_models_only(peers: tuple[Peers, str]) -> None:
    peers[0].versions[0] = from_json(BASE)
    async with ServiceClient("model registry", peers[1], retry_delays=()) as http:
        registry = ModelRegistryClient(http)
        assert await registry.specs(0) == {"w": ("F64", (3,)), "b": ("F64", ())}
        with pytest.raises(NotFoundError, match="no version 9"):
            await registry.specs(9)


async def test_the_server_state_of_a_version(registry: ModelRegistryClient) -> None:
    version = await registry.add_version(to_safetensors(MODEL), "k-1")
    assert await registry.state(version) is None
    assert await registry.values_of_state(version) == {}
    written = io.BytesIO()
    assert not await registry.write_state(version, written)
    state = to_safetensors({"m/w": np.zeros((2, 3))}, {"values": '{"round":1}'})
    for _again in range(2):
        await registry.put_state(version, state)
    assert await registry.values_of_state(version) == {
        "round": 1
    }  # nothing is kept yet: the header alone is read
    kept = await registry.state(version)
    assert kept is not None
    assert from_safetensors(kept)[1] == {"values": '{"round":1}'}
    assert await registry.write_state(version, written)
    assert written.getvalue() == kept
    assert await registry.values_of_state(version) == {"round": 1}
    with pytest.raises(ServiceError, match="409"):
        await registry.put_state(version, to_safetensors({"m/w": np.ones((2, 3))}))


async def test_aliases(registry: ModelRegistryClient) -> None:
    version = await registry.add_version(to_safetensors(MODEL), "k-1")
    await registry.set_alias("digits-1/latest", version)
    assert (await registry.info("digits-1/latest"))["version"] == version
    with pytest.raises(NotFoundError, match="did you mean 'digits-1/latest'"):
        await registry.info("digits-2/latest")
    with pytest.raises(ServiceError, match="404"):
        await registry.set_alias("digits-1/best", 7)


async def test_a_registry_that_does_not_answer_is_not_one_without_the_version() -> None:
    async with ServiceClient("model registry", "http://127.0.0.1:1", retry_delays=()) as http:
        registry = ModelRegistryClient(http)
        for ask in (registry.specs(0), registry.state(0), registry.info(0)):
            with pytest.raises(ServiceError, match="cannot be reached"):
                await ask
