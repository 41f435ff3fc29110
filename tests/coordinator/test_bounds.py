"""Numbers of one device that are out of bounds harm nobody else: it is named and left out, and the round goes on."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.store import RoundStore
from propeller.fl.tensors import SAFETENSORS, from_json, to_safetensors
from propeller.process.http import ServiceClient
from support.coordinator import Peers, configure, ended, send, update


async def failures(http: httpx.AsyncClient) -> dict[str, str]:
    detail = (await http.get("/rounds/r-1")).json()
    return {one["proplet_id"]: one["reason"] for one in detail["failures"]}


async def post(http: httpx.AsyncClient, **more: Any) -> tuple[int, str]:
    answer = await http.post("/update", json=update("p-2", **more))
    return answer.status_code, str(answer.json().get("error", ""))


@pytest.mark.parametrize(
    ("bounds", "sent", "named"),
    [
        (
            None,
            {"num_samples": 10**15},
            "num_samples: p-2 says 1000000000000000, more than the 1000000000 of",
        ),
        ({"max_samples": 500}, {"num_samples": 501}, "more than the 500 of update.max_samples"),
        ({"max_steps": 500}, {"steps": 501}, "steps: p-2 says 501, more than the 500 of update.max_steps"),
        ({"metric_ranges": {"loss": [0, 10]}}, {"metrics": {"loss": 1e300}}, "(update.metric_ranges)"),
        ({"max_norm": 4.0}, {"value": 2.5}, "is 5 for p-2, more than the 4 of update.max_norm"),
        ({"max_norm": 4.0}, {"value": 1e38}, "is 2e+38 for p-2, more than the 4 of update.max_norm"),
    ],
)
async def test_the_round_goes_on_without_whoever_is_out_of_bounds(
    http: httpx.AsyncClient,
    peers: tuple[Peers, str],
    bounds: dict[str, Any] | None,
    sent: dict[str, Any],
    named: str,
) -> None:
    await configure(http, timeout_s=3600, update=bounds)
    await send(http, "p-1")
    status, error = await post(http, **sent)
    assert (status, named in error) == (422, True), error
    assert await failures(http) == {"p-2": error}
    await send(http, "p-3")  # nobody waits for p-2: its failure is known
    assert (await ended(http))["num_updates"] == 2
    assert peers[0].aggregations == [["p-1", "p-3"]]


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "7", None, 2**53])
async def test_what_is_no_number_of_samples_is_refused(http: httpx.AsyncClient, samples: Any) -> None:
    await configure(http)
    status, error = await post(http, num_samples=samples)
    assert (status, error.partition(":")[0]) == (400, "num_samples")


async def test_a_device_that_goes_on_and_on_is_written_down_once(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await configure(http)
    saved: list[object] = []
    save = RoundStore.save

    async def note(self: RoundStore, *arguments: Any) -> None:
        saved.append(arguments)
        await save(self, *arguments)

    monkeypatch.setattr(RoundStore, "save", note)
    for more in range(20):
        assert (await post(http, num_samples=10**10 + more))[0] == 422
    assert len(saved) == 1
    assert "says 10000000000," in (await failures(http))["p-2"]


async def test_a_device_that_sends_a_better_one_counts_after_all(http: httpx.AsyncClient) -> None:
    await configure(http, update={"max_samples": 100})
    assert (await post(http, num_samples=101))[0] == 422
    await send(http, "p-2")
    assert await failures(http) == {}
    assert (await post(http, num_samples=101))[0] == 422  # and stays so
    assert await failures(http) == {}
    await send(http, "p-1", "p-3")
    assert (await ended(http))["num_updates"] == 3


async def test_nobody_counts_for_more_than_the_share(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    await configure(http, update={"max_share": 0.5})
    await send(http, "p-1")
    more = {"num_samples": 10**9, "metrics": {"loss": 2.5}}
    assert (await post(http, value=5.0, **more))[0] == 200
    await send(http, "p-3")
    status = await ended(http)
    [plan] = peers[0].plans
    assert [one["num_samples"] for one in plan["contributions"]] == [64, 128, 64]
    assert peers[0].versions[status["model_version"]]["b"] == 3.0  # (64 + 128 · 5 + 64) / 256
    received = (await http.get("/rounds/r-1")).json()["received"]
    assert {one["proplet_id"]: one.get("counted_samples") for one in received} == {
        "p-1": None,
        "p-2": 128,
        "p-3": None,
    }


async def test_a_large_update_is_refused_by_its_header(http: httpx.AsyncClient) -> None:
    await configure(http, update={"max_samples": 100})
    document = to_safetensors(
        from_json({"w": [1.0, 1.0, 1.0], "b": 1.0}),
        {"round_id": "r-1", "proplet_id": "p-2", "num_samples": "101"},
    )

    async def pieces() -> Any:
        yield document

    headers = {"content-type": SAFETENSORS}
    answer = await http.post("/update", content=pieces(), headers=headers)
    assert answer.status_code == 422
    assert "update.max_samples" in (await failures(http))["p-2"]


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"max_share": 0}, "update.max_share"),
        ({"max_norm": -1.0}, "update.max_norm"),
        ({"max_samples": 0}, "update.max_samples"),
        ({"max_sample": 5}, "update.max_sample"),
        ({"metric_ranges": {"loss": [2, 1]}}, "2 is more than 1"),
    ],
)
async def test_bounds_that_are_none_are_refused(
    http: httpx.AsyncClient, bounds: dict[str, Any], named: str
) -> None:
    answer = await http.post(
        "/experiments", json={"round_id": "r-1", "participants": ["p-1"], "update": bounds}
    )
    assert answer.status_code == 400
    assert named in answer.json()["error"]


@pytest.mark.parametrize("most", [0, 4 * 1024 * 1024])
async def test_large_models_are_measured_from_files(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("propeller.coordinator.base_models.LARGE_BYTES", most)
    await configure(http, update={"max_norm": 4.0})
    status, error = await post(http, value=2.5)
    assert (status, "is 5 for p-2" in error) == (422, True)
    assert (await post(http, value=1.5))[0] == 200


@pytest.mark.parametrize("most", [0, 100, 4 * 1024 * 1024])
async def test_a_document_in_pieces_is_read_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("propeller.coordinator.base_models.LARGE_BYTES", most)
    tensors = {"w": np.arange(500, dtype=np.float32), "b": np.array(2.0)}
    document = to_safetensors(tensors)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(document), 90):
            yield document[start : start + 90]

    async with ServiceClient("nobody", "http://127.0.0.1:1") as nobody:
        found = await BaseModels(ModelRegistryClient(nobody), tmp_path / "large").read(pieces())
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in tensors.items()
    }
