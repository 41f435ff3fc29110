"""Rounds over HTTP: quorum, deadline, who may send what, and what is answered."""

import asyncio
from pathlib import Path

import httpx
import pytest

from support.coordinator import (
    PARTICIPANTS,
    Peers,
    client,
    configure,
    coordinating,
    ended,
    environment,
    experiment,
    kept_updates,
    send,
    update,
)
from support.net import eventually


async def test_a_round_from_configuration_to_its_model(
    http: httpx.AsyncClient, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    answer = await http.post("/experiments", json=experiment())
    assert answer.status_code == 201
    assert answer.json() == {
        "experiment_id": "exp-r-1",
        "round_id": "r-1",
        "status": "configured",
        "model_version": 0,
    }
    await send(http, "p-3", value=3.0)
    await send(http, "p-1", value=1.0)
    status = (await http.get("/rounds/r-1/complete")).json()
    inner = {"round_id": "r-1", "completed": False, "num_updates": 2, "k_of_n": 3}
    assert status == {**inner, "state": "collecting", "status": inner}
    await send(http, "p-2", value=2.0)
    status = await ended(http)
    inner = {"round_id": "r-1", "completed": True, "num_updates": 3, "k_of_n": 3, "model_version": 1}
    assert status == {
        **inner,
        "state": "completed",
        "model_uri": "fl/models/global_model_v1",
        "status": inner,
    }
    assert peers[0].versions[1]["w"].tolist() == [2.0, 2.0, 2.0]
    # In the participants' order, whoever was first.
    assert peers[0].aggregations == [PARTICIPANTS]
    await eventually(lambda: not kept_updates(tmp_path))


async def test_the_answer_to_the_last_update_does_not_wait_for_aggregation(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    gate = peers[0].pause_at("aggregate")
    await configure(http)
    await send(http, *PARTICIPANTS)
    await peers[0].reached.wait()
    status = (await http.get("/rounds/r-1/complete")).json()
    assert (status["state"], status["completed"]) == ("aggregating", False)
    gate.set()
    assert (await ended(http))["completed"]


async def test_an_update_counts_once(http: httpx.AsyncClient) -> None:
    await configure(http)
    await send(http, "p-1", "p-1", "p-1")
    assert (await http.get("/rounds/r-1/complete")).json()["num_updates"] == 1
    other = await http.post("/update", json=update("p-1", value=9.0))
    assert other.status_code == 409
    assert "already counts" in other.json()["error"]
    await send(http, "p-2", "p-3")
    assert (await ended(http))["num_updates"] == 3
    # Also when the round is over: whoever lost the answer must hear that it counted.
    await send(http, "p-1")
    assert (await http.post("/update", json=update("p-1", value=9.0))).status_code == 409


async def test_quorum_closes_a_round_and_later_updates_are_late(http: httpx.AsyncClient) -> None:
    await configure(http, k_of_n=2)
    await send(http, "p-1", "p-2")
    late = await http.post("/update", json=update("p-3"))
    assert late.status_code == 409
    assert "late" in late.json()["error"]
    assert (await ended(http))["num_updates"] == 2


async def test_foreign_stale_and_unknown_updates_are_told_so(http: httpx.AsyncClient) -> None:
    await configure(http)
    foreign = await http.post("/update", json=update("p-9"))
    assert (foreign.status_code, "not a participant" in foreign.json()["error"]) == (403, True)
    stale = await http.post("/update", json=update("p-1", base_model_uri="fl/models/global_model_v7"))
    assert (stale.status_code, "base_model_uri" in stale.json()["error"]) == (409, True)
    unknown = await http.post("/update", json=update("p-1", "r-404"))
    assert (unknown.status_code, "POST /experiments" in unknown.json()["error"]) == (404, True)
    assert (await http.get("/rounds/r-404/complete")).status_code == 404
    assert (await http.get("/rounds/r-404/complete")).json() == {"error": "Round not found"}
    # An update that does not name its base means the round's.
    assert (await http.post("/update", json=update("p-1", base_model_uri=""))).status_code == 200


async def test_the_deadline_closes_with_what_has_come(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    await configure(http, timeout_s=0.3)
    await send(http, "p-2", value=4.0)
    status = await ended(http)
    assert (status["completed"], status["num_updates"]) == (True, 1)
    assert peers[0].versions[1]["b"].tolist() == 4.0


@pytest.mark.parametrize(("least", "sent"), [(1, 0), (2, 1)])
async def test_the_deadline_fails_a_round_with_too_few(
    http: httpx.AsyncClient, least: int, sent: int
) -> None:
    await configure(http, timeout_s=0.2, min_updates=least)
    await send(http, *PARTICIPANTS[:sent])
    status = await ended(http)
    assert (status["completed"], status["state"]) == (False, "failed")
    assert status["reason"].startswith("deadline")
    assert (await http.post("/rounds/r-1/retry")).status_code == 409
    assert (await http.post("/update", json=update("p-3"))).status_code == 409


async def test_the_same_experiment_again_changes_nothing_and_another_is_refused(
    http: httpx.AsyncClient,
) -> None:
    await configure(http)
    await send(http, "p-1")
    again = await http.post("/experiments", json=experiment())
    assert (again.status_code, again.json()["model_version"]) == (201, 0)
    assert (await http.get("/rounds/r-1/complete")).json()["num_updates"] == 1
    other = await http.post("/experiments", json=experiment(k_of_n=2))
    assert (other.status_code, "configured differently" in other.json()["error"]) == (409, True)


async def test_the_same_experiment_many_times_at_once_is_one_round(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(http.post("/experiments", json=experiment()) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert (await http.get("/rounds")).json()["total"] == 1
    others = await asyncio.gather(
        *(http.post("/experiments", json=experiment("r-2", timeout_s=number)) for number in range(1, 9))
    )
    assert sorted(answer.status_code for answer in others) == [201] + [409] * 7
    await send(http, *PARTICIPANTS)
    assert (await ended(http))["completed"]


async def test_fifty_updates_at_once(http: httpx.AsyncClient, peers: tuple[Peers, str]) -> None:
    names = [f"p-{number}" for number in range(50)]
    await configure(http, participants=names, k_of_n=50)
    # Each twice, and each time as two requests at once.
    answers = await asyncio.gather(*(http.post("/update", json=update(name)) for name in names * 2))
    assert {answer.status_code for answer in answers} == {200}
    status = await ended(http)
    assert (status["completed"], status["num_updates"]) == (True, 50)
    assert peers[0].aggregations == [names]


@pytest.mark.usefixtures("place")
async def test_two_different_updates_of_one_proplet_at_once(peers: tuple[Peers, str], tmp_path: Path) -> None:
    async with coordinating(environment(tmp_path, peers[1])) as http:
        await configure(http, k_of_n=2, participants=["p-1", "p-2"])
        bodies = [update("p-1", value=float(number)) for number in range(8)]
        answers = await asyncio.gather(*(http.post("/update", json=body) for body in bodies))
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
        # Those that do not count are not kept either.
        assert len(kept_updates(tmp_path)) == 1
        winner = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
        await send(http, "p-2", value=float(winner))
        await ended(http)
        assert peers[0].versions[1]["b"].tolist() == float(winner)
        await eventually(lambda: not kept_updates(tmp_path))


async def test_many_rounds_at_once_have_their_own_versions(http: httpx.AsyncClient) -> None:
    names = [f"r-{number}" for number in range(8)]

    async def play(name: str) -> int:
        await configure(http, name)
        await send(http, *PARTICIPANTS, round_id=name)
        version: int = (await ended(http, name))["model_version"]
        return version

    assert sorted(await asyncio.gather(*map(play, names))) == list(range(1, 9))


async def test_the_task_is_what_was_configured(http: httpx.AsyncClient) -> None:
    await configure(http)
    task = (await http.get("/task?round_id=r-1&proplet_id=p-1")).json()
    assert task == {
        "task": {
            "round_id": "r-1",
            "model_ref": "fl/models/global_model_v0",
            "config": {"proplet_id": "p-1"},
            "hyperparams": {"epochs": 1, "lr": 0.01},
        }
    }
    assert (await http.get("/task?round_id=r-2")).status_code == 404
    assert (await http.get("/rounds/r-2/complete")).status_code == 404
    missing = await http.get("/task")
    assert (missing.status_code, missing.json()) == (400, {"error": "round_id is required"})


async def test_rounds_are_listed_newest_first_and_shown_in_full(http: httpx.AsyncClient) -> None:
    none = (await http.get("/rounds/next")).json()
    assert none == {"next_round_available": False, "message": "No completed rounds found"}
    for name in ("r-1", "r-2", "r-3"):
        await configure(http, name, k_of_n=1)
    await send(http, "p-2", round_id="r-2")
    await ended(http, "r-2")
    page = (await http.get("/rounds?limit=2")).json()
    assert [one["round_id"] for one in page["rounds"]] == ["r-3", "r-2"]
    assert (page["total"], page["rounds"][1]["num_updates"], page["rounds"][1]["state"]) == (
        3,
        1,
        "completed",
    )
    assert [one["round_id"] for one in (await http.get("/rounds?offset=2")).json()["rounds"]] == ["r-1"]
    detail = (await http.get("/rounds/r-2")).json()
    assert detail["participants"] == PARTICIPANTS
    assert detail["missing"] == ["p-1", "p-3"]
    assert detail["received"][0]["proplet_id"] == "p-2"
    assert detail["received"][0]["metrics"] == {"loss": 0.5}
    assert set(detail["timings"]) == {"aggregate_ms", "store_ms"}
    following = (await http.get("/rounds/next")).json()
    assert following == {
        "next_round_available": True,
        "last_completed_round": "r-2",
        "new_model_version": 1,
        "model_uri": "fl/models/global_model_v1",
        "status": "ready",
    }


async def test_waiting_for_updates_and_for_the_end(http: httpx.AsyncClient) -> None:
    await configure(http, k_of_n=2)
    first = asyncio.create_task(http.get("/rounds/r-1/complete?wait_s=20&updates=0"))
    end = asyncio.create_task(http.get("/rounds/r-1/complete?wait_s=20"))
    # When a wait that was begun later is over, the longer ones have begun.
    waited = (await http.get("/rounds/r-1/complete?wait_s=0.05&updates=0")).json()
    assert (waited["num_updates"], first.done(), end.done()) == (0, False, False)
    await send(http, "p-1")
    assert (await first).json()["num_updates"] == 1
    assert not end.done()
    await send(http, "p-2")
    assert (await end).json()["completed"]
    soon = (await http.get("/rounds/r-1/complete?wait_s=0.01&updates=9")).json()
    assert soon["completed"]


async def test_those_who_wait_are_answered_when_the_coordinator_stops(
    peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1])
    async with client(env) as other:
        async with coordinating(env) as http:
            await configure(http)
            waiting = asyncio.create_task(other.get("/rounds/r-1/complete?wait_s=60"))
            # When a wait that was begun later is over, the longer one has begun.
            await http.get("/rounds/r-1/complete?wait_s=0.05")
        # One that is still open after the server's grace is answered 503.
        answer = await waiting
    assert (answer.status_code, answer.json()["state"]) == (200, "collecting")


async def test_rounds_out_of_memory_are_still_answered(http: httpx.AsyncClient) -> None:
    for number in range(70):
        await configure(http, f"r-{number}", k_of_n=1, participants=["p-1"])
        await send(http, "p-1", round_id=f"r-{number}")
        await ended(http, f"r-{number}")
    assert (await http.get("/rounds/r-0/complete")).json()["completed"]
    await send(http, "p-1", round_id="r-0")
    assert (await http.post("/update", json=update("p-1", "r-0", 5.0))).status_code == 409


async def test_metrics_count_rounds_and_updates(http: httpx.AsyncClient) -> None:
    await configure(http, k_of_n=1)
    await send(http, "p-1", "p-1")
    await ended(http)
    await http.post("/update", json=update("p-9"))
    text = (await http.get("/metrics")).text
    for line in (
        'propeller_rounds_total{state="completed"} 1.0',
        'propeller_updates_total{outcome="accepted"} 1.0',
        'propeller_updates_total{outcome="repeated"} 1.0',
        'propeller_updates_total{outcome="foreign"} 1.0',
    ):
        assert line in text
