"""What the coordinator refuses: each with the right status, a text that names the fault, and nothing counted."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cbor2
import httpx
import numpy as np
import pytest

from propeller.fl.tensors import SAFETENSORS, to_safetensors
from support.coordinator import Peers, configure, coordinating, ended, environment, experiment, send, update


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"round_id": ""}, 400, "round_id"),
        ({"round_id": "../../etc"}, 400, "round_id"),
        ({"round_id": "a/b"}, 400, "round_id"),
        ({"round_id": "r\u0000"}, 400, "round_id"),
        ({"round_id": "next"}, 400, "reserved"),
        ({"round_id": 7}, 400, "round_id"),
        ({"participants": []}, 400, "participants"),
        ({"participants": ["p-1", "p-1"]}, 400, "participants"),
        ({"participants": ["../p"]}, 400, "participants"),
        ({"participants": "p-1"}, 400, "participants"),
        ({"k_of_n": 4}, 400, "k_of_n"),
        ({"k_of_n": -1}, 400, "k_of_n"),
        ({"k_of_n": "many"}, 400, "k_of_n"),
        ({"k_of_n": True}, 400, "k_of_n"),
        ({"timeout_s": True}, 400, "timeout_s"),
        ({"min_updates": True}, 400, "min_updates"),
        ({"model_ref": "fl/models/\x1b[2Kglobal_model_v0"}, 400, "model_ref"),
        ({"experiment_id": "exp\n"}, 400, "experiment_id"),
        ({"task_wasm_image": "localhost/a\x00:1"}, 400, "task_wasm_image"),
        ({"timeout_s": -1}, 400, "timeout_s"),
        ({"timeout_s": 1e300}, 400, "timeout_s"),
        ({"min_updates": 4}, 400, "min_updates"),
        ({"hyperparams": [1]}, 400, "hyperparams"),
        ({"model_ref": "fl/models/global_model_v" + "9" * 400}, 400, "model_ref"),
    ],
)
async def test_experiments(api: httpx.AsyncClient, change: dict[str, Any], status: int, named: str) -> None:
    answer = await api.post("/experiments", json=experiment(**change))
    assert (answer.status_code, named in answer.json()["error"]) == (status, True), answer.text
    assert (await api.get("/rounds")).json()["total"] == 0


async def test_unknown_fields_of_an_experiment_are_named_in_the_answer(api: httpx.AsyncClient) -> None:
    answer = await api.post("/experiments", json=experiment(timeout=5, kofn=2))
    assert (answer.status_code, answer.json()["ignored"]) == (201, ["kofn", "timeout"])
    again = await api.post("/experiments", json=experiment())
    assert again.status_code == 201
    assert "ignored" not in again.json()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"round_id": NaN}', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("path", ["/experiments", "/update"])
async def test_what_is_not_a_json_object(api: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await api.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"round_id": None}, 400, "round_id"),
        ({"proplet_id": ""}, 400, "proplet_id"),
        ({"proplet_id": "../p-1"}, 400, "proplet_id"),
        ({"base_model_uri": "9" * 10_000}, 400, "base_model_uri"),
        ({"num_samples": 0}, 400, "num_samples"),
        ({"num_samples": -5}, 400, "num_samples"),
        ({"num_samples": 1.5}, 400, "num_samples"),
        ({"num_samples": "64"}, 400, "num_samples"),
        ({"num_samples": True}, 400, "num_samples"),
        ({"num_samples": 2**53}, 400, "num_samples"),
        ({"num_samples": 10**400}, 400, "num_samples"),
        ({"metrics": [1]}, 400, "metrics"),
        ({"metrics": {"log": 10**400}}, 400, "metrics: 'log' is beyond the range of float64"),
        ({"metrics_left_out": {"log": 7}}, 400, "metrics_left_out"),
        ({"metrics_left_out": {"log": "x" * 33}}, 400, "metrics_left_out"),
        ({"metrics": {"x" * 129: 1}}, 400, "128 printable characters"),
        (
            {"metrics": {f"m{n}": n for n in range(1001)}},
            400,
            "metrics: 1001 are more than the limit of 1000",
        ),
        ({"update": {}}, 400, "update"),
        ({"update": None}, 400, "update"),
        ({"update": [1, 2]}, 400, "update"),
        ({"update": {"w": [1, [2], 3], "b": 0}}, 400, "'w'"),
        ({"update": {"w": [[1, 2], [3]], "b": 0}}, 400, "'w'"),
        ({"update": {"w": [1, "2", 3], "b": 0}}, 400, "'w'"),
        ({"update": {"w": [1, None, 3], "b": 0}}, 400, "'w'"),
        ({"update": {"w": [1, 2, 3], "b": 10**400}}, 400, "'b'"),
        ({"update": {"w": [1, 2], "b": 0}}, 422, "'w'"),
        ({"update": {"w": [1, 2, 3], "b": [0]}}, 422, "'b'"),
        ({"update": {"w": [1, 2, 3]}}, 422, "'b'"),
        ({"update": {"w": [1, True, 3], "b": 0}}, 400, "'w'"),
        ({"update": {"w": [1, 2, 3], "b": 0, "extra": 1}}, 422, "'extra'"),
    ],
)
async def test_updates(api: httpx.AsyncClient, change: dict[str, Any], status: int, named: str) -> None:
    await configure(api)
    answer = await api.post("/update", json={**update(), **change})
    assert (answer.status_code, named in answer.json()["error"]) == (status, True), answer.text
    assert (await api.get("/rounds/r-1/complete")).json()["num_updates"] == 0
    await send(api, "p-1")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_not_finite(api: httpx.AsyncClient, number: str) -> None:
    await configure(api)
    body = json.dumps(update()).replace('"w": [1.0,', f'"w": [{number},')
    answer = await api.post("/update", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert (await api.get("/rounds/r-1/complete")).json()["num_updates"] == 0


async def test_lone_surrogates_do_not_break_an_answer(api: httpx.AsyncClient) -> None:
    body = json.dumps(experiment(hyperparams={"a": "\ud800"}))
    answer = await api.post("/experiments", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {201, 400}
    assert (await api.get("/task?round_id=r-1")).status_code in {200, 404}


@pytest.mark.parametrize(
    "path",
    ["/rounds/..%2f..%2fetc/complete", "/rounds/%00/complete", "/rounds/a%2fb", f"/rounds/{'x' * 300}"],
)
async def test_ids_that_are_none_are_not_found(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(path)
    assert answer.status_code == 404
    assert "error" in answer.json()


@pytest.mark.parametrize(
    "path",
    [
        "/rounds?limit=0",
        "/rounds?offset=-1",
        "/rounds/r-1/complete?wait_s=nan",
        "/rounds/r-1/complete?wait_s=x",
    ],
)
async def test_wrong_query_parameters(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(path)).status_code == 400


async def test_a_body_over_the_limit(peers: tuple[Peers, str], tmp_path: Path) -> None:
    async with coordinating(environment(tmp_path, peers[1], COORDINATOR_MAX_BYTES="2000")) as http:
        await configure(http)
        answer = await http.post("/update", json=update(metrics={"x": "y" * 3000}))
        assert answer.status_code == 413
        assert "2000 bytes (COORDINATOR_MAX_BYTES): send" in answer.json()["error"]
        await send(http, "p-1")


async def test_a_large_update_over_the_limit_or_of_nobody_who_is_asked(
    peers: tuple[Peers, str], tmp_path: Path
) -> None:
    """Each is refused before it has come, and leaves nothing behind."""
    headers = {"content-type": SAFETENSORS}
    env = environment(tmp_path, peers[1], COORDINATOR_MAX_UPDATE_BYTES="200000")

    async def without_end(proplet_id: str) -> AsyncIterator[bytes]:
        yield document({"w": np.zeros(10_000_000)}, proplet_id=proplet_id)[:1000]
        for _ in range(2000):
            yield b"\0" * 1000

    async with coordinating(env) as http:
        await configure(http)
        for proplet_id, status, named in (
            ("p-1", 413, "COORDINATOR_MAX_UPDATE_BYTES"),
            ("q", 403, "q is not a participant"),
        ):
            answer = await http.post("/update", content=without_end(proplet_id), headers=headers)
            assert (answer.status_code, named in answer.json()["error"]) == (status, True), answer.text
        assert (await http.get("/rounds/r-1/complete")).json()["num_updates"] == 0
        await send(http, "p-1")


async def test_a_disk_that_cannot_be_used_is_named(peers: tuple[Peers, str], tmp_path: Path) -> None:
    env = environment(tmp_path, peers[1])
    place, headers = Path(env["COORDINATOR_STATE"]) / "large", {"content-type": SAFETENSORS}
    async with coordinating(env) as http:
        await configure(http)
        place.touch()  # it is no folder
        answer = await http.post("/update", content=in_pieces(document()), headers=headers)
        assert (answer.status_code, "COORDINATOR_STATE" in answer.json()["error"]) == (503, True), answer.text
        place.unlink()
        answer = await http.post("/update", content=in_pieces(document()), headers=headers)
        assert answer.status_code == 200, answer.text
        assert list(place.iterdir()) == []


async def test_a_media_type_that_is_none_of_ours(api: httpx.AsyncClient) -> None:
    answer = await api.post("/update", content=b"x", headers={"content-type": "text/csv"})
    assert (answer.status_code, SAFETENSORS in answer.json()["error"]) == (415, True)


# --- CBOR and safetensors -------------------------------------------------------------------------------------


async def test_updates_as_cbor_with_lists_and_typed_arrays(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    await configure(http, k_of_n=3)
    plain = cbor2.dumps(update("p-1", value=1.0))
    big, little = np.full(3, 2.0, ">f4").tobytes(), np.full(3, 3.0, "<f8").tobytes()
    typed = cbor2.dumps({**update("p-2"), "update": {"w": cbor2.CBORTag(81, big), "b": 2.0}})
    shaped = cbor2.CBORTag(40, [[3], cbor2.CBORTag(86, little)])
    many = cbor2.dumps({**update("p-3"), "update": {"b": 3.0, "w": shaped}})
    for body in (plain, typed, many):
        answer = await http.post("/update_cbor", content=body)
        assert (answer.status_code, answer.json()) == (200, {"status": "accepted"}), answer.text
    await ended(http)
    assert peers[0].versions[1]["w"].tolist() == [2.0, 2.0, 2.0]


def nested(**tensors: Any) -> bytes:
    return cbor2.dumps({**update(), "update": tensors})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b"\x81" * 5000, 400),
        (cbor2.dumps([1]), 400),
        (cbor2.dumps({1: 2}), 400),
        (cbor2.dumps({**update(), "metrics": {"when": cbor2.CBORTag(1, 0)}}), 400),
        (cbor2.dumps({**update(), "metrics": {"x": float("nan")}}), 400),
        (cbor2.dumps({**update(), "metrics": {"x": b"bytes"}}), 400),
        (bytes.fromhex("a1666d657472696373d81c81d81d00"), 400),  # a list that holds itself
        (nested(w=[1.0, float("inf"), 1.0], b=0), 400),
        (nested(w=cbor2.CBORTag(85, b"\0" * 11), b=0), 400),
        (nested(w=cbor2.CBORTag(40, [[4], cbor2.CBORTag(85, b"\0" * 12)]), b=0), 400),
        (nested(w=[cbor2.CBORTag(85, b"\0" * 4)] * 3, b=0), 400),
        (nested(w=cbor2.CBORTag(85, b"\0\0\xc0\x7f" * 3), b=0), 400),
        (nested(w=cbor2.CBORTag(85, b"\0" * 16), b=0), 422),
        (nested(w=cbor2.CBORTag(85, b""), b=0), 422),
    ],
)
async def test_bad_cbor(api: httpx.AsyncClient, body: bytes, status: int) -> None:
    await configure(api)
    answer = await api.post("/update_cbor", content=body)
    assert (answer.status_code, bool(answer.json()["error"])) == (status, True), answer.text
    await send(api, "p-1")


def document(tensors: dict[str, Any] | None = None, **metadata: str) -> bytes:
    header = {"round_id": "r-1", "proplet_id": "p-1", "num_samples": "64", **metadata}
    given = tensors or {"b": np.float32(2.0), "w": np.full(3, 2.0, np.float32)}
    return to_safetensors({name: np.asarray(value) for name, value in given.items()}, header)


async def test_updates_as_safetensors(api: httpx.AsyncClient) -> None:
    await configure(api)
    headers = {"content-type": SAFETENSORS}
    body = document(metrics='{"loss": 0.25}', base_model_uri="fl/models/global_model_v0")
    assert (await api.post("/update", content=body, headers=headers)).status_code == 200
    # In another order of tensors it is the same update.
    other = {"w": np.full(3, 2.0, np.float32), "b": np.float32(2.0)}
    assert (await api.post("/update", content=document(other), headers=headers)).status_code == 200
    received = (await api.get("/rounds/r-1")).json()["received"]
    assert [(one["num_samples"], one["metrics"]) for one in received] == [(64, {"loss": 0.25})]
    # By a file, too: it is the same one, and another one is not.
    assert (await api.post("/update", content=in_pieces(body), headers=headers)).status_code == 200
    different = in_pieces(document(num_samples="65"))
    assert (await api.post("/update", content=different, headers=headers)).status_code == 409


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"", 400, "safetensors"),
        (b"\xff" * 100, 400, "safetensors"),
        (document()[:-1], 400, "cut off"),
        (document() + b"x", 400, "followed"),
        (document(num_samples="-1"), 400, "num_samples"),
        (document(num_samples="1e3"), 400, "num_samples"),
        (document(num_samples="٣"), 400, "num_samples"),
        (document(num_samples="9" * 5000), 400, "num_samples"),
        (document(metrics="{"), 400, "metrics"),
        (document(metrics='{"a": NaN}'), 400, "metrics"),
        (document(proplet_id="../p-1"), 400, "proplet_id"),
        (document({"w": np.zeros(3)}), 422, "'b'"),
        (document({"w": np.zeros((3, 1)), "b": np.zeros(())}), 422, "'w'"),
    ],
)
async def test_bad_safetensors(api: httpx.AsyncClient, body: bytes, status: int, named: str) -> None:
    await configure(api)
    for content in (body, in_pieces(body)):  # in memory, and by a file
        answer = await api.post("/update", content=content, headers={"content-type": SAFETENSORS})
        assert (answer.status_code, named in answer.json()["error"]) == (status, True), answer.text


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body of a length that is not announced."""
    for start in range(0, len(body), 50):
        yield body[start : start + 50]
