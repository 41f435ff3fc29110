"""The model registry over HTTP."""

import asyncio
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.errors import StartError
from propeller.fl.tensors import SAFETENSORS, Tensors, from_safetensors, to_safetensors
from propeller.fl.tensors.npz import NPZ
from propeller.model_registry.aliases import AliasStore
from propeller.model_registry.api import main
from propeller.model_registry.encodings import Encodings
from propeller.model_registry.service import ModelRegistry
from propeller.model_registry.settings import ModelRegistrySettings
from propeller.model_registry.states import StateStore
from propeller.model_registry.store import ModelStore
from propeller.protocol.multipart import MULTIPART, unpack
from support.model_registry import client, client_as, put
from support.net import free_port

ZEROS = {"w": [0.0, 0.0, 0.0], "b": 0.0}


async def test_the_guides_step_6(http: httpx.AsyncClient) -> None:
    for _again in range(2):
        answer = await http.post("/models", json={"version": 0, "model": ZEROS})
        assert answer.status_code == 201
        assert answer.json()["version"] == 0
        assert answer.json()["status"] == "stored"
    assert (await http.get("/models/0")).text == '{"w":[0,0,0],"b":0}'


async def test_versions_are_allocated_in_order_and_listed_after_a_restart(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        for expected in range(3):
            answer = await http.post("/models", json={"model": {"w": [float(expected)]}})
            assert answer.json()["version"] == expected
        await http.post("/models", json={"version": 10, "model": {"w": [10.0]}})
        assert (await http.post("/models", json={"model": {"w": [11.0]}})).json()["version"] == 11
    async with client(tmp_path) as http:
        assert (await http.get("/models")).json() == {"versions": [0, 1, 2, 10, 11]}
        assert (await http.get("/models/latest")).json() == {"w": [11]}
        assert (await http.get("/models/latest")).headers["x-model-version"] == "11"


async def test_a_version_never_changes(http: httpx.AsyncClient) -> None:
    await http.post("/models", json={"version": 1, "model": {"w": [1.0]}})
    answer = await http.post("/models", json={"version": 1, "model": {"w": [2.0]}})
    assert answer.status_code == 409
    assert "version 1" in answer.json()["error"]
    assert (await http.get("/models/1")).json() == {"w": [1]}


async def test_a_key_gives_one_version_even_after_a_restart(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        first = await http.post("/models", json={"model": {"w": [1.0]}}, headers={"idempotency-key": "r-1"})
        await http.post("/models", json={"model": {"w": [2.0]}}, headers={"idempotency-key": "r-2"})
    async with client(tmp_path) as http:
        again = await http.post("/models", json={"model": {"w": [1.0]}}, headers={"idempotency-key": "r-1"})
        assert again.status_code == 201
        assert again.json()["version"] == first.json()["version"]
        assert (await http.get("/models")).json() == {"versions": [0, 1]}


async def test_safetensors_in_and_out_with_its_type_and_metadata(http: httpx.AsyncClient) -> None:
    model = {"layer/w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, np.float32)}
    content = to_safetensors(model, {"round_id": "r-9"})
    stored = await http.post(
        "/models", content=content, headers={"content-type": SAFETENSORS}, params={"version": 7}
    )
    assert stored.json()["version"] == 7
    answer = await http.get("/models/7", headers={"accept": SAFETENSORS})
    tensors, metadata = from_safetensors(answer.content)
    assert metadata == {"round_id": "r-9"}
    assert list(tensors) == ["layer/w", "b"]
    assert tensors["layer/w"].dtype == np.float32
    np.testing.assert_array_equal(tensors["layer/w"], model["layer/w"])
    assert (await http.get("/models/7")).json() == {"layer/w": [[0, 1, 2], [3, 4, 5]], "b": 0.5}


async def test_both_documents_of_a_model_in_one_answer(http: httpx.AsyncClient) -> None:
    """For those who name it; what anything accepts gets is JSON, as before."""
    await http.post("/models", json={"version": 0, "model": {"w": [1.0, 2.5]}})
    both = await http.get("/models/0", headers={"accept": f"{MULTIPART}, application/json;q=0.5"})
    assert unpack(both.headers["content-type"], both.content) == {
        name: (await http.get("/models/0", headers={"accept": name})).content
        for name in ("application/json", SAFETENSORS)
    }
    same = await http.get("/models/0", headers={"accept": MULTIPART, "if-none-match": both.headers["etag"]})
    assert same.status_code == 304
    for accept in ("*/*", "multipart/*, application/json;q=0.5", f"application/json, {MULTIPART};q=0.5"):
        answer = await http.get("/models/0", headers={"accept": accept})
        assert answer.headers["content-type"] == "application/json"


async def test_npz_in_and_out(http: httpx.AsyncClient) -> None:
    model: dict[str, Any] = {"layer/w": np.arange(6, dtype=np.float32).reshape(2, 3), "on": np.array(True)}
    content = io.BytesIO()
    np.savez_compressed(content, **model)
    stored = await http.post("/models?version=3", content=content.getvalue(), headers={"content-type": NPZ})
    assert stored.json()["version"] == 3
    answer = await http.get("/models/3", headers={"accept": NPZ})
    assert answer.headers["content-type"] == NPZ
    with np.load(io.BytesIO(answer.content)) as found:
        assert found["layer/w"].dtype == np.float32
        np.testing.assert_array_equal(found["layer/w"], model["layer/w"])
        assert found["on"].dtype == bool
    packed = io.BytesIO()
    np.savez_compressed(packed, w=np.zeros(1_000_000))
    answer = await http.post("/models", content=packed.getvalue(), headers={"content-type": NPZ})
    assert answer.status_code == 413
    assert "REGISTRY_MAX_DECODED_BYTES" in answer.json()["error"]
    assert (await http.get("/models")).json() == {"versions": [3]}


async def test_entity_tags(http: httpx.AsyncClient) -> None:
    await http.post("/models", json={"version": 0, "model": ZEROS})
    first = await http.get("/models/0")
    other = await http.get("/models/0", headers={"accept": SAFETENSORS})
    assert first.headers["etag"] != other.headers["etag"]
    again = await http.get("/models/0", headers={"if-none-match": f'"x", {first.headers["etag"]}'})
    assert again.status_code == 304
    assert again.content == b""
    assert (await http.get("/models/0", headers={"if-none-match": other.headers["etag"]})).status_code == 200


async def test_files_of_absmach_propeller_are_read(tmp_path: Path) -> None:
    (tmp_path / "global_model_v4.json").write_text('{\n  "b": 1,\n  "version": 4,\n  "w": [1, 2]\n}')
    async with client(tmp_path) as http:
        assert (await http.get("/models")).json() == {"versions": [4]}
        assert (await http.get("/models/4")).json() == {"b": 1, "w": [1, 2]}
        assert (
            await http.post("/models", json={"version": 4, "model": {"w": [1, 2], "b": 1}})
        ).status_code == 201
        assert (
            await http.post("/models", json={"version": 4, "model": {"w": [9, 2], "b": 1}})
        ).status_code == 409
        assert (await http.post("/models", json={"model": {"w": [1]}})).json()["version"] == 5


async def test_a_damaged_file_is_named_and_the_others_are_served(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        await http.post("/models", json={"version": 0, "model": ZEROS})
        (tmp_path / "global_model_v1.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
        answer = await http.get("/models/1")
        assert answer.status_code == 500
        assert "version 1 is damaged" in answer.json()["error"]
        assert (await http.get("/models/0")).status_code == 200
        assert (await http.post("/models", json={"model": ZEROS})).json()["version"] == 2


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "model"),
        ({"model": None}, "model"),
        ({"model": {}}, "no tensors"),
        ({"model": [1]}, "model"),
        ({"model": {"w": [[1], [1, 2]]}}, "'w'"),
        ({"model": {"w": ["1"]}}, "'w'"),
        ({"model": {"w": [True, 1]}}, "'w'"),
        ({"version": -1, "model": ZEROS}, "version"),
        ({"version": "1", "model": ZEROS}, "version"),
        ({"version": 2**60, "model": ZEROS}, "version"),
    ],
)
async def test_bad_models_name_the_field(http: httpx.AsyncClient, body: dict[str, Any], named: str) -> None:
    answer = await http.post("/models", json=body)
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["error"]
    assert (await http.get("/models")).json() == {"versions": []}


async def test_other_faults_have_their_own_status(http: httpx.AsyncClient) -> None:
    json_type = {"content-type": "application/json"}
    assert (
        await http.post("/models", content=b'{"model": {"w": [NaN]}}', headers=json_type)
    ).status_code == 400
    assert (
        (await http.post("/models", content=b'{"model"', headers=json_type))
        .json()["error"]
        .startswith("Invalid JSON")
    )
    assert (await http.post("/models", content=b" " * 200_000)).status_code == 413
    assert (
        await http.post("/models", content=b"x", headers={"content-type": "image/png"})
    ).status_code == 415
    assert (await http.get("/models/0")).status_code == 404
    assert (await http.get("/models/latest")).status_code == 404
    for version in ("-1", "x", "..", "1.5", "9" * 40):
        assert (await http.get(f"/models/{version}")).status_code in {400, 404}
    assert (await http.get("/models/0", headers={"accept": "text/html"})).status_code == 406


async def test_metadata_cannot_claim_a_key(http: httpx.AsyncClient) -> None:
    headers = {"content-type": SAFETENSORS}
    for number in range(2):
        content = to_safetensors({"w": np.array([float(number)])}, {"propeller.key": "r-1"})
        answer = await http.post("/models", content=content, headers=headers)
        assert answer.json()["version"] == number
    answer = await http.post("/models", json={"model": ZEROS}, headers={"idempotency-key": "r-1"})
    assert answer.json()["version"] == 2


async def test_after_the_last_version_there_is_none(http: httpx.AsyncClient) -> None:
    await http.post("/models", json={"version": 2**53 - 1, "model": ZEROS})
    answer = await http.post("/models", json={"model": ZEROS})
    assert answer.status_code == 409
    assert str(2**53 - 1) in answer.json()["error"]


async def test_an_operator_may_take_versions_away_while_it_runs(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    for number in range(2):
        await http.post(
            "/models", json={"model": {"w": [number]}}, headers={"idempotency-key": f"r-{number}"}
        )
    assert (await http.get("/models/1")).json() == {"w": [1]}
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert (await http.get("/models/1")).status_code == 404
    again = await http.post("/models", json={"model": {"w": [5]}}, headers={"idempotency-key": "r-1"})
    assert again.json()["version"] == 0
    assert (await http.get("/models/0")).json() == {"w": [5]}


async def test_numbers_that_changed_on_the_disk_are_not_served(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await http.post("/models", json={"version": 1, "model": {"w": [1.5]}})
    file = tmp_path / "global_model_v1.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    answer = await http.get("/models/1")
    assert answer.status_code == 500
    assert "damaged" in answer.json()["error"]


async def test_a_model_is_encoded_once_for_all_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path)
    reads: list[int] = []
    read = store.read

    def counted(version: int) -> tuple[Tensors, dict[str, str]]:
        reads.append(version)
        return read(version)

    monkeypatch.setattr(store, "read", counted)
    encodings = Encodings(store, StateStore(tmp_path), cache_bytes=1_000_000)
    await ModelRegistry(store, StateStore(tmp_path), AliasStore(tmp_path), encodings).seed(ZEROS)
    answers = await asyncio.gather(*(encodings.model(0, "application/json") for _ in range(20)))
    assert len({answer.etag for answer in answers}) == 1
    await encodings.model(0, "application/json")
    assert reads == [0]


@pytest.mark.parametrize(("role", "status"), [("proplet", 403), ("device", 403), ("coordinator", 201)])
async def test_devices_list_and_store_no_models(tmp_path: Path, role: str, status: int) -> None:
    async with client_as(tmp_path, role) as client:
        assert (await client.post("/models", json={"model": ZEROS})).status_code == status
        assert (await client.get("/models")).status_code == (200 if status == 201 else status)


async def test_a_device_reads_the_version_that_it_was_told_of(tmp_path: Path) -> None:
    """Another's number is easily guessed, the digest of its model is not."""
    async with client(tmp_path) as http:
        digests = [
            (await http.post("/models", json={"model": {"w": [number]}})).json()["digest"]
            for number in (1, 2)
        ]
        assert (await http.get("/models/0/info")).json()["digest"] == digests[0]
        for version in (0, 1):
            state = to_safetensors({"m": np.array([float(version)])}, {})
            assert (
                await put(http, f"/models/{version}/state", from_safetensors(state)[0])
            ).status_code == 200
    async with client_as(tmp_path, "proplet") as device:
        for path in ("/models/0", "/models/0/state"):
            for told in (
                {},
                {"x-model-digest": digests[1]},
                {"x-model-digest": ""},
                {b"x-model-digest": b"\xe9"},
            ):
                refused = await device.get(path, headers=told)
                assert refused.status_code == 403, (path, told)
                assert "MODEL_DIGEST" in refused.json()["error"]
                assert "etag" not in refused.headers
            assert (await device.get(path, headers={"x-model-digest": digests[0]})).status_code == 200
        assert (await device.get("/models/latest", headers={"x-model-digest": digests[0]})).status_code == 403
        known = (await device.get("/models/0", headers={"x-model-digest": digests[0]})).headers["etag"]
        again = await device.get("/models/0", headers={"if-none-match": known})
        assert again.status_code == 403
    async with client_as(tmp_path, "coordinator") as service:
        assert (await service.get("/models/0")).status_code == 200


@pytest.mark.parametrize("given", ["{", "[1]", '{"w": "x"}', "{}", "/no/such/file", '{"w": [NaN]}'])
async def test_a_wrong_initial_model_names_the_variable(tmp_path: Path, given: str) -> None:
    settings = ModelRegistrySettings.load(folder=tmp_path, initial_model=given, port=free_port())
    with pytest.raises(StartError, match="REGISTRY_INITIAL_MODEL"):
        await main(settings, asyncio.Event())


async def test_the_initial_model_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "initial.json").write_text('{"w": [0.5, 1], "b": 0}')
    settings = ModelRegistrySettings.load(
        folder=tmp_path / "models", initial_model=str(tmp_path / "initial.json")
    )
    models = ModelRegistry.open(settings.folder, cache_bytes=0)
    await models.seed(settings.read_initial_model())
    assert (await models.encodings.model(0, "application/json")).body.head == b'{"w":[0.5,1.0],"b":0}'
