"""Where a version comes from, and the server state beside it."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.fl.tensors import SAFETENSORS, Tensors, from_safetensors, to_safetensors
from propeller.model_registry.states import MAX_VALUES_BYTES
from propeller.protocol.models import MAX_LINEAGE_BYTES
from support.model_registry import client, client_as, post, put
from support.net import free_port
from support.service import start_service

MODEL: Tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(3, np.int64)}

LINEAGE = {
    "experiment": "digits-1",
    "round": "digits-1.2",
    "number": 2,
    "parent": 0,
    "strategy": {"name": "fedadam", "params": {"eta": 0.1, "tau": None}},
    "program": {"reference": "localhost:5000/digits:v1", "digest": "sha256:" + "0" * 64},
    "participants": 3,
    "num_samples": 1347,
    "metrics": {"loss": 0.25, "accuracy": 1},
    "updates": [{"proplet_id": "p-1", "digest": "a" * 64, "num_samples": 449}],
    "created_at": "2026-11-27T12:00:00Z",
    "ticket": "of our own",
}


WITHOUT_UPDATES = {name: value for name, value in LINEAGE.items() if name != "updates"}


async def info(http: httpx.AsyncClient, version: int | str) -> dict[str, Any]:
    answer = await http.get(f"/models/{version}/info")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_lineage_comes_back_as_it_was_given_in_both_encodings(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        assert await post(http, MODEL, {"lineage": json.dumps(LINEAGE), "round_id": "r"}) == 0
        stored = await http.post("/models", json={"model": {"w": [1.5]}, "lineage": LINEAGE})
        assert stored.json()["version"] == 1
    async with client(tmp_path) as http:
        first, second = await info(http, 0), await info(http, "latest")
        assert first["lineage"] == second["lineage"] == LINEAGE
        assert first["tensors"] == {
            "w": {"dtype": "F32", "shape": [2, 3]},
            "steps": {"dtype": "I64", "shape": []},
        }
        assert second["tensors"] == {"w": {"dtype": "F64", "shape": [1]}}
        assert first["has_state"] is False
        assert first["size"] == (tmp_path / "global_model_v0.safetensors").stat().st_size
        assert first["digest"] != second["digest"]
        content = (await http.get("/models/0", headers={"accept": SAFETENSORS})).content
        metadata = from_safetensors(content)[1]
        assert json.loads(metadata["lineage"]) == WITHOUT_UPDATES
        assert metadata["round_id"] == "r"
        assert (await http.get("/models/1")).json() == {"w": [1.5]}


@pytest.mark.parametrize("large", [False, True])
async def test_devices_are_not_told_who_else_took_part(tmp_path: Path, large: bool) -> None:
    model: Tensors = {"w": np.zeros(200_000 if large else 3)}
    async with client(tmp_path, max_body=4_000_000) as http:
        await post(http, model, {"lineage": json.dumps(LINEAGE)})
        digest = (await info(http, 0))["digest"]
    for role in ("proplet", "coordinator"):
        async with client_as(tmp_path, role) as http:
            told = await http.get("/models/0/info")
            assert (told.status_code, told.json().get("lineage")) == (
                (403, None) if role == "proplet" else (200, LINEAGE)
            )
            headers = {"accept": SAFETENSORS, "x-model-digest": digest}
            content = (await http.get("/models/0", headers=headers)).content
            found, metadata = from_safetensors(content)
            np.testing.assert_array_equal(found["w"], model["w"])
            assert json.loads(metadata["lineage"]) == WITHOUT_UPDATES


async def test_a_version_without_a_lineage_and_one_of_absmach_propeller(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await post(http, MODEL)
    (tmp_path / "global_model_v4.json").write_text('{"b": 1, "version": 4, "w": [1, 2]}')
    assert (await info(http, 0))["lineage"] is None
    found = await info(http, 4)
    assert found["tensors"] == {
        "b": {"dtype": "F64", "shape": []},
        "w": {"dtype": "F64", "shape": [2]},
    }
    assert found["lineage"] is None
    assert len(found["digest"]) == 64
    assert (await http.get("/models/5/info")).status_code == 404


@pytest.mark.parametrize(
    ("lineage", "named"),
    [
        ({"number": 0}, "lineage: number"),
        ({"number": "1"}, "lineage: number"),
        ({"experiment": "a/b"}, "lineage: experiment"),
        ({"metrics": {"loss": "low"}}, "lineage: metrics.loss"),
        ({"metrics": {"loss": True}}, "lineage: metrics.loss"),
        ({"program": {}}, "lineage: program.reference"),
        ({"updates": [{"proplet_id": "p"}]}, "lineage: updates.0"),
        ({"created_at": "yesterday"}, "lineage: created_at"),
    ],
)
async def test_a_wrong_lineage_is_refused_by_field(
    http: httpx.AsyncClient, lineage: dict[str, Any], named: str
) -> None:
    in_metadata = await http.post(
        "/models",
        content=to_safetensors(MODEL, {"lineage": json.dumps(lineage)}),
        headers={"content-type": SAFETENSORS},
    )
    in_json = await http.post("/models", json={"model": {"w": [1]}, "lineage": lineage})
    for answer in (in_metadata, in_json):
        assert answer.status_code == 400
        assert named in answer.json()["error"]
    assert (await http.get("/models")).json() == {"versions": []}


@pytest.mark.parametrize("text", ["", "no", "[1]", '{"metrics":{"loss":NaN}}', '{"x":1e999}'])
async def test_a_lineage_that_is_no_json_object_is_refused(http: httpx.AsyncClient, text: str) -> None:
    content = to_safetensors(MODEL, {"lineage": text})
    answer = await http.post("/models", content=content, headers={"content-type": SAFETENSORS})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("lineage: ")


async def test_a_lineage_has_a_limit(http: httpx.AsyncClient) -> None:
    longest = {"note": "x" * (MAX_LINEAGE_BYTES - len('{"note":""}'))}
    assert await post(http, MODEL, {"lineage": json.dumps(longest, separators=(",", ":"))}) == 0
    assert (await info(http, 0))["lineage"] == longest
    for over in ({"note": longest["note"] + "x"}, {"note": "é" * (MAX_LINEAGE_BYTES // 2)}):
        answer = await http.post("/models", json={"model": {"w": [1]}, "lineage": over})
        assert answer.status_code == 413
        assert str(MAX_LINEAGE_BYTES) in answer.json()["error"]


STATE: Tensors = {"m/w": np.full((2, 3), 0.5), "m/steps": np.array(0.25)}


async def test_a_state_is_kept_beside_its_version_and_never_changes(tmp_path: Path) -> None:
    values = {"round": 3, "eta": 0.1}
    async with client(tmp_path) as http:
        await post(http, MODEL)
        assert (await http.get("/models/0/state")).status_code == 404
        for _again in range(2):
            answer = await put(http, "/models/0/state", STATE, {"values": json.dumps(values)})
            assert answer.status_code == 200, answer.text
            assert answer.json() == {"version": 0, "status": "stored"}
        reordered = dict(reversed(STATE.items()))
        again = await put(http, "/models/0/state", reordered, {"values": '{"eta": 0.1, "round": 3}'})
        assert again.status_code == 200
        for other, other_values in (({**STATE, "m/steps": np.array(1.0)}, values), (STATE, {"round": 4})):
            answer = await put(http, "/models/0/state", other, {"values": json.dumps(other_values)})
            assert answer.status_code == 409
            assert "version 0" in answer.json()["error"]
    async with client(tmp_path) as http:
        assert (await info(http, 0))["has_state"] is True
        answer = await http.get("/models/latest/state")
        assert answer.headers["content-type"] == SAFETENSORS
        tensors, metadata = from_safetensors(answer.content)
        assert json.loads(metadata["values"]) == values
        assert tensors.keys() == STATE.keys()
        np.testing.assert_array_equal(tensors["m/w"], STATE["m/w"])
        assert (await http.get("/models")).json() == {"versions": [0]}


async def test_a_state_that_cannot_be_one_is_refused(http: httpx.AsyncClient) -> None:
    await post(http, MODEL)
    assert (await put(http, "/models/1/state", STATE)).status_code == 404
    assert (await http.put("/models/0/state", json={"m": [1]})).status_code == 415
    headers = {"content-type": SAFETENSORS}
    answer = await http.put("/models/0/state", content=b"\x02\0\0\0\0\0\0\0no", headers=headers)
    assert answer.status_code == 400
    for values in ("[1]", "{", '{"a": Infinity}'):
        answer = await put(http, "/models/0/state", STATE, {"values": values})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("values: ")
    assert (await info(http, 0))["has_state"] is False


async def test_the_values_of_a_state_have_a_limit(tmp_path: Path) -> None:
    async with client(tmp_path, max_body=2 * MAX_VALUES_BYTES) as http:
        await post(http, MODEL)
        answer = await put(http, "/models/0/state", STATE, {"values": f'{{"x":"{"y" * MAX_VALUES_BYTES}"}}'})
        assert answer.status_code == 413
        assert str(MAX_VALUES_BYTES) in answer.json()["error"]


@pytest.mark.parametrize(("role", "status"), [("proplet", 403), ("device", 403), ("coordinator", 200)])
async def test_devices_read_states_and_store_none(tmp_path: Path, role: str, status: int) -> None:
    async with client(tmp_path) as http:
        await post(http, MODEL)
        await put(http, "/models/0/state", STATE)
        digest = (await info(http, 0))["digest"]
    async with client_as(tmp_path, role) as http:
        assert (await put(http, "/models/0/state", STATE)).status_code == status
        told = {"x-model-digest": digest}
        assert (await http.get("/models/0/state", headers=told)).status_code == (
            403 if role == "device" else 200
        )


def test_kill_9_between_model_and_state(tmp_path: Path) -> None:
    """The model is stored, the registry dies, and the sender does both again: one version, one state."""
    headers = {"content-type": SAFETENSORS, "idempotency-key": "r-1"}
    model, state = to_safetensors(MODEL), to_safetensors(STATE, {"values": '{"round":1}'})
    for sends_state in (False, True, True):
        port = free_port()
        env = {"MODELS_DIR": str(tmp_path / "models"), "REGISTRY_PORT": str(port)}
        url = f"http://127.0.0.1:{port}/models"
        with start_service("model-registry", env, port, tmp_path / "log") as process:
            assert httpx.post(url, content=model, headers=headers).json()["version"] == 1
            if sends_state:
                answer = httpx.put(f"{url}/1/state", content=state, headers={"content-type": SAFETENSORS})
                assert answer.status_code == 200
                assert json.loads(from_safetensors(httpx.get(f"{url}/1/state").content)[1]["values"]) == {
                    "round": 1
                }
            process.kill()
