"""The aggregator over HTTP: both forms of its input, both of its output, and what it refuses."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.aggregator.api import create_api
from propeller.aggregator.service import Aggregator
from propeller.fl.tensors import SAFETENSORS, SAFETENSORS_SEQ, from_safetensors, to_safetensors


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(Aggregator(max_update_bytes=1_000_000), max_bytes=50_000_000, max_json_bytes=100_000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://aggregator") as client:
        yield client


def update(proplet_id: str = "p-1", samples: Any = 64, **tensors: Any) -> dict[str, Any]:
    return {
        "round_id": "r-1",
        "proplet_id": proplet_id,
        "base_model_uri": "fl/models/global_model_v0",
        "num_samples": samples,
        "metrics": {"loss": 0.5},
        "update": tensors or {"w": [1.0, 2.0, 3.0], "b": 1.0},
    }


async def test_the_form_of_absmach_propeller(http: httpx.AsyncClient) -> None:
    body = {"updates": [update("p-1", 1, w=[0.0, 0.0], b=0.0), update("p-2", 3, w=[4.0, 8.0], b=1.0)]}
    answer = await http.post("/aggregate", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"w": [3, 6], "b": 0.75}


async def test_streams_in_safetensors_out_whatever_the_pieces(http: httpx.AsyncClient) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(40_000).astype(np.float32) for _ in range(20)]
    documents = b"".join(
        to_safetensors({"w": array}, {"num_samples": str(n), "proplet_id": f"p-{n}"})
        for n, array in enumerate(arrays, 1)
    )

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(documents), 70_001):
            yield documents[start : start + 70_001]

    headers = {"content-type": SAFETENSORS_SEQ, "accept": SAFETENSORS}
    answer = await http.post("/aggregate", content=pieces(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == SAFETENSORS
    mean = from_safetensors(answer.content)[0]["w"]
    expected = np.average(np.stack(arrays).astype(np.float64), axis=0, weights=range(1, 21))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"updates": []}, 400, "No updates provided"),
        ({}, 400, "updates"),
        ({"updates": [update(samples=0)]}, 400, "num_samples"),
        ({"updates": [update(samples=-3)]}, 400, "num_samples"),
        ({"updates": [update(samples=2**60)]}, 400, "num_samples"),
        ({"updates": [update(samples=1.5)]}, 400, "num_samples"),
        ({"updates": [update("p\n7", w=[None])]}, 422, r"'p\\n7'"),
        ({"updates": [update("p-7", w="none")]}, 422, "p-7.*'w'"),
        ({"updates": [update("p-7", w=[[1], [1, 2]])]}, 422, "p-7.*'w'"),
        ({"updates": [update("p-1"), update("p-2", w=[1.0, 2.0], b=1.0)]}, 422, "update 2 of 'p-2'.*'w'"),
        ({"updates": [update("p-1"), update("p-2", w=[1.0, 2.0, 3.0])]}, 422, "p-2.*'b'"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(
    http: httpx.AsyncClient, body: dict[str, Any], status: int, named: str
) -> None:
    answer = await http.post("/aggregate", content=json.dumps(body))
    assert answer.status_code == status, answer.text
    assert re.search(named, answer.json()["error"]), answer.text


@pytest.mark.parametrize(
    ("content", "status", "named"),
    [
        (b"", 400, "No updates"),
        (b"\xff" * 40, 422, "update 1"),
        (to_safetensors({"w": np.ones(3)}, {"num_samples": "3"})[:-4], 422, "ends inside"),
        (to_safetensors({"w": np.ones(3)}, {"proplet_id": "p-9"}), 422, "p-9.*num_samples"),
        (
            to_safetensors({"w": np.ones(3)}, {"proplet_id": "p-9", "num_samples": "-1"}),
            422,
            "p-9.*num_samples",
        ),
        (to_safetensors({"w": np.ones(200_000)}, {"num_samples": "1"}), 413, "limit"),
        (
            to_safetensors({"w": np.ones(3)}, {"num_samples": "1", "proplet_id": "p-1"})
            + to_safetensors({"w": np.ones(4)}, {"num_samples": "1", "proplet_id": "p-2"}),
            422,
            "update 2 of 'p-2'.*'w'",
        ),
    ],
)
async def test_bad_streams(http: httpx.AsyncClient, content: bytes, status: int, named: str) -> None:
    answer = await http.post("/aggregate", content=content, headers={"content-type": SAFETENSORS_SEQ})
    assert answer.status_code == status, answer.text
    assert re.search(named, answer.json()["error"]), answer.text


async def test_other_faults_have_their_own_status(http: httpx.AsyncClient) -> None:
    good = {"updates": [update()]}
    assert (await http.post("/aggregate", content=b'{"updates": [NaN]}')).status_code == 400
    assert (await http.post("/aggregate", json=good, params={"strategy": "x"})).status_code == 400
    assert (await http.post("/aggregate", json=good, headers={"accept": "text/html"})).status_code == 406
    assert (
        await http.post("/aggregate", content=b"x", headers={"content-type": "image/png"})
    ).status_code == 415
    assert (await http.post("/aggregate", content=b" " * 200_000)).status_code == 413
    assert (await http.get("/aggregate")).status_code == 405
    assert (await http.get("/health")).json() == {"status": "ok"}
