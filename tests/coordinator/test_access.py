"""Who may do what, where authentication is on."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.errors import UnauthenticatedError
from propeller.fl.round import Round, RoundPlan
from propeller.protocol.rounds import RoundStart
from propeller.web.auth import Admission, Principal
from support.coordinator import assembled, experiment, update

CALLERS = {
    "manager": Principal("client", "m-1", "manager"),
    "p-1": Principal("client", "p-1", "proplet"),
    "p-2": Principal("client", "p-2", "proplet"),
    "user": Principal("user", "u-1", "operator"),
    "viewer": Principal("user", "u-2", "viewer"),
}


async def verify(header: str) -> Principal:
    name = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")[0]
    if name not in CALLERS:
        raise UnauthenticatedError("no such client")
    return CALLERS[name]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with assembled(tmp_path, Admission(verify)) as client:
        yield client


async def test_only_users_and_the_manager_configure_rounds(api: httpx.AsyncClient) -> None:
    for name, status in (("p-1", 403), ("user", 201), ("manager", 201), ("nobody", 401)):
        answer = await api.post("/experiments", json=experiment(), auth=(name, "k"))
        assert answer.status_code == status, answer.text
    assert (await api.post("/experiments", json=experiment())).status_code == 401
    for verb in ("retry", "cancel"):
        assert (await api.post(f"/rounds/r-1/{verb}", auth=("p-1", "k"))).status_code == 403
    assert (await api.get("/rounds/r-1")).status_code == 401
    assert (await api.get("/health")).status_code == 200


async def test_only_operators_control_experiments(api: httpx.AsyncClient) -> None:
    body = {"program": "localhost:5000/fl:v1", "rounds": 1}
    paths = ["/experiments", "/rounds/r-1/participants"]
    paths += [f"/experiments/e/{verb}" for verb in ("pause", "resume", "stop")]
    chosen = {"participants": ["p-1"]}
    for path in paths:
        sent = chosen if path.endswith("participants") else body
        refused = await api.post(path, json=sent, auth=("p-1", "k"))
        assert refused.status_code == 403, (path, refused.text)
        assert (await api.post(path, json=sent)).status_code == 401
        # There is no broker, no such experiment and no such round here.
        answer = await api.post(path, json=sent, auth=("user", "k"))
        assert answer.status_code in {404, 503}, (path, answer.text)
        assert (await api.post(path, json=sent, auth=("viewer", "k"))).status_code == 403


async def test_devices_see_no_experiment_but_whether_one_is_over(api: httpx.AsyncClient) -> None:
    for path in ("", "/e/history", "/e/events"):
        assert (await api.get(f"/experiments{path}", auth=("p-1", "k"))).status_code == 403
        assert (await api.get(f"/experiments{path}", auth=("viewer", "k"))).status_code in {200, 404}
    assert (await api.get("/experiments/e", auth=("p-1", "k"))).status_code == 404


def test_devices_are_told_of_themselves_alone() -> None:
    start = RoundStart(
        round_id="e.1",
        model_uri="fl/models/global_model_v0",
        task_wasm_image="i",
        participants=["p-1", "p-2"],
        names={"p-1": "ward-1", "p-2": "ward-2"},
    )
    update = AcceptedUpdate("p-1", "d", 1, {}, 1, 0.0)
    current = Round(RoundPlan("e.1", ("p-1", "p-2"), 0, 2), failures={"p-2": "no memory"})
    record = RoundRecord(current, start, {}, 0.0, updates={"p-1": update})
    told = record.detail()
    assert [one["name"] for one in told["received"] + told["failures"]] == ["ward-1", "ward-2"]
    assert record.detail_for("p-1") == {
        "round_id": "e.1",
        "state": told["state"],
        "received": [told["received"][0]],
        "failures": [],
    }
    assert "p-1" not in json.dumps(record.detail_for("p-2"))


async def test_only_users_and_the_manager_report_failures(api: httpx.AsyncClient) -> None:
    await api.post("/experiments", json=experiment(), auth=("manager", "k"))
    body = {"proplet_id": "p-1", "reason": "no such image"}
    for name, status in (("p-1", 403), ("user", 200), ("manager", 200), ("nobody", 401)):
        answer = await api.post("/rounds/r-1/failures", json=body, auth=(name, "k"))
        assert answer.status_code == status, answer.text


async def test_a_proplet_sends_its_own_updates_only(api: httpx.AsyncClient) -> None:
    await api.post("/experiments", json=experiment(), auth=("manager", "k"))
    foreign = await api.post("/update", json=update("p-1"), auth=("p-2", "k"))
    assert (foreign.status_code, "p-2 may not" in foreign.json()["error"]) == (403, True)
    for name in ("p-1", "manager", "user"):
        # The manager passes on what its own callers send; a person may try things out.
        assert (await api.post("/update", json=update("p-1"), auth=(name, "k"))).status_code == 200
