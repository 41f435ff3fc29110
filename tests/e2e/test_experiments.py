"""Experiments on a whole stack: posted to the coordinator, and then nobody watches."""

import hashlib
import json
from typing import Any

import httpx
import pytest

from support.net import eventually
from support.stack import Up, running_stack

HYPERPARAMS = {"epochs": 1, "lr": 0.05, "batch_size": 16}


def spec(up: Up, **fields: Any) -> dict[str, Any]:
    """Rounds of the guide's program on every proplet."""
    program = next(iter(up.stack["images"].values()))
    return {"program": program, "rounds": 3, "hyperparams": HYPERPARAMS, "model": {"version": 0}, **fields}


def coordinator(up: Up) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=up.url("coordinator"), timeout=60)


async def submit(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    answer = await http.post("/experiments", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def over(http: httpx.AsyncClient, experiment_id: str) -> dict[str, Any]:
    """The experiment once it is over."""

    async def ended() -> dict[str, Any] | None:
        try:
            found = (await http.get(f"/experiments/{experiment_id}")).json()
        except httpx.TransportError:  # the coordinator is being restarted
            return None
        return found if found["ended_at"] else None

    found = await eventually(ended, timeout=120, what=f"the end of {experiment_id}")
    assert found is not None
    return found


async def digest(up: Up, version: int) -> str:
    """Of a model's content."""
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await http.get(f"{up.url('model_registry')}/models/{version}")
        answer.raise_for_status()
        tensors = {name: value for name, value in answer.json().items() if name != "version"}
        return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_stack(tmp_path_factory.mktemp("stack") / "state") as running:
        yield running


async def test_three_rounds_by_themselves(up: Up) -> None:
    async with coordinator(up) as http:
        experiment_id = await submit(http, spec(up))
        found = await over(http, experiment_id)
        assert (found["state"], found["done"], found["reason"]) == ("completed", 3, None)
        assert "@sha256:" in found["program"]
        rounds = (await http.get(f"/experiments/{experiment_id}/history")).json()["rounds"]
        assert [one["round_id"] for one in rounds] == [f"{experiment_id}.{number}" for number in (1, 2, 3)]
        assert [one["base_version"] for one in rounds[1:]] == [one["model_version"] for one in rounds[:-1]]
        assert rounds[0]["base_version"] == 0
        for one in rounds:
            assert sorted(update["proplet_id"] for update in one["updates"]) == sorted(up.ids())
            assert one["metrics"]["loss"] > 0
        assert found["model_version"] == rounds[-1]["model_version"]
