"""The aggregator over HTTP: updates in JSON, and what is refused of them."""

import json
import re
from typing import Any

import httpx
import pytest


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


JSON = {"content-type": "application/json"}


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
    answer = await http.post("/aggregate", content=json.dumps(body), headers=JSON)
    assert answer.status_code == status, answer.text
    assert re.search(named, answer.json()["error"]), answer.text


async def test_other_faults_have_their_own_status(http: httpx.AsyncClient) -> None:
    good = {"updates": [update()]}
    assert (await http.post("/aggregate", content=b'{"updates": [NaN]}', headers=JSON)).status_code == 400
    assert (await http.post("/aggregate", json=good, params={"strategy": "x"})).status_code == 400
    assert (await http.post("/aggregate", json=good, headers={"accept": "text/html"})).status_code == 406
    assert (
        await http.post("/aggregate", content=b"x", headers={"content-type": "image/png"})
    ).status_code == 415
    assert (await http.post("/aggregate", content=b" " * 200_000, headers=JSON)).status_code == 413
    assert (await http.get("/aggregate")).status_code == 405
    assert (await http.get("/health")).json() == {"status": "ok"}
