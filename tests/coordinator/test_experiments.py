"""Experiments in the coordinator: what follows from what, what is told of it, and what is refused."""

import asyncio
import csv
import io
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from propeller.coordinator import tables
from propeller.coordinator.aggregation import RETRY_DELAYS
from propeller.coordinator.experiment_store import ExperimentStore
from propeller.coordinator.rounds import RoundChange
from propeller.coordinator.store import Also, RoundStore
from propeller.errors import InvalidError
from propeller.fl.round import RoundState
from propeller.fl.strategies import strategy_names
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.history import rows_of
from propeller.protocol.topics import Channel
from support.coordinator import (
    PARTICIPANTS,
    Peers,
    client,
    coordinating,
    environment,
    experiment,
    kept_updates,
    process,
)
from support.databases import change, execute
from support.experiments import (
    IMAGE,
    PINNED,
    FakeFleet,
    answering,
    detail,
    events,
    history,
    in_state,
    spec,
    submit,
    variables,
)
from support.net import eventually


@dataclass
class World:
    """A coordinator, its peers and a fleet."""

    http: httpx.AsyncClient
    peers: Peers
    fleet: FakeFleet
    env: dict[str, str]


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    return Channel("d-1", f"c-{tmp_path.name}"[:100])


@pytest.fixture
async def world(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> AsyncIterator[World]:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        yield World(http, peers[0], fleet, env)


def change_json(
    env: dict[str, str], column: "sa.Column[Any]", row: sa.ColumnElement[bool], **fields: Any
) -> None:
    """Change a column of a coordinator that does not run, as another version might have left it."""

    def run(connection: sa.Connection) -> None:
        key = next(iter(column.table.primary_key))
        found = connection.execute(sa.select(key, column).where(row)).all()
        assert found
        for value, document in found:
            changed = column.table.update().where(key == value)
            connection.execute(changed.values({column.name: document | fields}))

    change(Path(env["COORDINATOR_STATE"]) / "coordinator.db", run)


async def test_rounds_follow_each_other_to_the_end(world: World) -> None:
    answer = await submit(world.http, hyperparams={"lr": {"schedule": "linear", "start": 1, "end": 3}})
    assert (answer["id"], answer["name"], answer["state"]) == ("e", "fl", "running")
    found = await in_state(world.http, "completed")
    assert (found["done"], found["model_version"], found["reason"], found["round"]) == (3, 3, None, None)
    assert world.fleet.round_ids == ["e.1", "e.2", "e.3"]
    rates = {
        start["round_id"]: start["hyperparams"]["lr"] for start in world.fleet.starts
    }  # one may come twice
    assert list(rates.values()) == [1, 2, 3]
    assert [start["model_uri"][-1] for start in world.fleet.starts] == ["0", "1", "2"]
    assert world.fleet.starts[0]["task_wasm_image"] == IMAGE
    assert {start["task_wasm_image"] for start in world.fleet.starts[1:]} == {PINNED}
    assert found["program"] == PINNED
    assert world.peers.aggregations == [PARTICIPANTS] * 3
    assert world.peers.aliases == {"e/latest": 3}  # before the end is told
    listed = (await world.http.get("/experiments?state=completed")).json()
    assert (listed["total"], listed["experiments"][0]["id"]) == (1, "e")
    assert (await world.http.get("/experiments?state=running")).json()["total"] == 0


async def test_a_check_begins_nothing(world: World) -> None:
    checked = await world.http.post("/experiments/check", json=spec(rounds=1))
    assert (checked.status_code, checked.json()["exists"]) == (200, False)
    assert checked.json()["spec"]["rounds"] == 1
    assert (await world.http.get("/experiments")).json()["total"] == 0
    await submit(world.http, rounds=1)
    assert (await world.http.post("/experiments/check", json=spec(rounds=1))).json()["exists"]


async def test_the_same_id_again(world: World) -> None:
    first = await submit(world.http, rounds=1)
    await in_state(world.http, "completed")
    again = await submit(world.http, rounds=1)
    assert (again["id"], again["created_at"]) == (first["id"], first["created_at"])
    other = await world.http.post("/experiments", json=spec(rounds=2))
    assert (other.status_code, "choose another id" in other.json()["error"]) == (409, True)
    unnamed = spec(rounds=1)
    del unnamed["id"]
    ids = {(await world.http.post("/experiments", json=unnamed)).json()["id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(one.startswith("fl-") for one in ids)
    for name, found in (("fl", ids), ("other", set())):
        page = (await world.http.get("/experiments", params={"name": name})).json()
        assert ids & {one["id"] for one in page["experiments"]} == found
        assert page["total"] == len(page["experiments"])


async def test_history_has_every_participant_with_its_metrics_and_failures(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.coordinator.store.ROUNDS_AT_ONCE", 1)

    def send(start: dict[str, Any], name: str) -> dict[str, Any] | str:
        if name == "p-2" and start["number"] == 2:
            return "no such image"
        return {"num_samples": 30 if name == "p-1" else 10, "steps": 5, "metrics": {"loss": float(name[-1])}}

    world.fleet.send = send
    chosen = {"participants": PARTICIPANTS, "names": {"p-1": "ward-1", "p-2": "ward, 2"}}
    world.fleet.choose = lambda _start: chosen
    await submit(world.http, rounds=2, min_updates=2)
    await in_state(world.http, "completed")
    first, second = await history(world.http)
    assert {
        name: first[name] for name in ("round_id", "number", "attempt", "kind", "state", "num_samples")
    } == {
        "round_id": "e.1",
        "number": 1,
        "attempt": 1,
        "kind": "train",
        "state": "completed",
        "num_samples": 50,
    }
    assert first["metrics"] == {"loss": pytest.approx((30 * 1 + 10 * 2 + 10 * 3) / 50)}
    assert [update["proplet_id"] for update in first["updates"]] == PARTICIPANTS
    assert (first["updates"][0]["steps"], first["updates"][0]["metrics"]) == (5, {"loss": 1.0})
    assert (first["base_version"], first["model_version"], second["base_version"]) == (0, 1, 1)
    assert first["seconds"] > 0
    assert second["failures"] == [{"proplet_id": "p-2", "name": "ward, 2", "reason": "no such image"}]
    assert [update.get("name") for update in first["updates"]] == ["ward-1", "ward, 2", None]
    assert first["names"] == chosen["names"]
    assert len(second["updates"]) == 2

    answer = await world.http.get("/experiments/e/history?format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["number"], row["proplet_id"], row["outcome"]) for row in rows] == [
        ("1", "p-1", "update"),
        ("1", "p-2", "update"),
        ("1", "p-3", "update"),
        ("2", "p-1", "update"),
        ("2", "p-2", "failure"),
        ("2", "p-3", "update"),
    ]
    assert (rows[0]["metrics.loss"], rows[4]["reason"]) == ("1.0", "no such image")
    assert (rows[4]["name"], rows[4]["mean.loss"]) == ("ward, 2", "1.5")
    of_json = [row for one in (first, second) for row in rows_of(one)]
    assert rows == [
        {name: "" if row.get(name) is None else str(row[name]) for name in rows[0]} for row in of_json
    ]
    told = [
        data
        for _seq, kind, data in await events(world.http)
        if kind in {"round_started", "update", "failure"}
    ]
    assert told[0]["names"] == chosen["names"]
    assert [one.get("name") for one in told if "proplet_id" in one] == [
        *("ward-1", "ward, 2", None),
        *("ward-1", "ward, 2", None),
    ]
    received = (await world.http.get("/rounds/e.2")).json()
    assert [one.get("name") for one in received["received"] + received["failures"]] == [
        "ward-1",
        None,
        "ward, 2",
    ]


async def test_events_are_numbered_resumed_and_end_by_themselves(world: World) -> None:
    await submit(world.http, rounds=1)
    found = await events(world.http)
    assert [seq for seq, _kind, _data in found] == list(range(1, len(found) + 1))
    assert [kind for _seq, kind, _data in found] == [
        "state",
        "state",
        "round_started",
        "update",
        "update",
        "update",
        "round_ended",
        "metrics",
        "state",
    ]
    data = [data for _seq, _kind, data in found]
    assert [data[index]["state"] for index in (0, 1, 8)] == ["queued", "running", "completed"]
    assert data[2]["participants"] == PARTICIPANTS
    assert (data[2]["k_of_n"], data[2]["round_id"], data[2]["number"]) == (3, "e.1", 1)
    assert [(one["proplet_id"], one["updates"]) for one in data[3:6]] == [("p-1", 1), ("p-2", 2), ("p-3", 3)]
    assert (data[6]["state"], data[6]["version"], data[6]["updates"]) == ("completed", 1, 3)
    assert data[7]["metrics"] == {"accuracy": 0.1, "loss": 1.0}
    assert all(one["experiment"] == "e" and one["at"].endswith("Z") for one in data)
    assert await events(world.http, after=7) == found[7:]
    assert await events(world.http, after=len(found)) == []


async def test_a_failed_round_is_tried_again_without_those_who_failed(world: World) -> None:
    world.fleet.send = lambda start, name: "no disk" if start["attempt"] == 1 and name == "p-3" else {}
    await submit(world.http, rounds=2, min_updates=3)
    found = await in_state(world.http, "completed")
    assert found["done"] == 2
    assert world.fleet.round_ids == ["e.1", "e.1.2", "e.2", "e.2.2"]
    assert world.fleet.starts[1]["selection"]["exclude"] == ["p-3"]
    first = (await history(world.http))[0]
    assert (first["state"], first["failures"]) == ("failed", [{"proplet_id": "p-3", "reason": "no disk"}])
    assert "no disk" in first["reason"]
    await eventually(lambda: not kept_updates(Path(world.env["COORDINATOR_STATE"])))


async def test_an_experiment_fails_with_the_reason_of_its_round(world: World) -> None:
    world.fleet.choose = lambda _start: {"failure": "1 device needed, 0 there"}
    await submit(world.http, retries=1)
    found = await in_state(world.http, "failed")
    assert found["reason"] == "round 1 failed 2 times, the last time: 1 device needed, 0 there"
    assert found["ended_at"]
    assert [one["state"] for one in await history(world.http)] == ["failed", "failed"]
    told = await events(world.http)
    assert [kind for _seq, kind, _data in told] == [
        "state",
        "state",
        "round_ended",
        "waiting",
        "round_ended",
        "state",
    ]
    [wait] = [data for _seq, kind, data in told if kind == "waiting"]
    assert (wait["round_id"], wait["attempt"]) == ("e.1.2", 2)
    assert re.fullmatch(r"\d\.\d s until it is tried again", wait["reason"])


async def test_a_mistake_in_the_program_is_not_tried_again(world: World) -> None:
    mistake = "the program exited with code 1: train.py:9: KeyError: 'nope'"
    world.fleet.send = lambda _start, _name: mistake
    await submit(world.http, retries=20)
    found = await in_state(world.http, "failed")
    assert found["reason"] == (
        "round 1 failed, and is not tried again, as the program itself fails alike on every device: "
        + mistake
    )
    assert world.fleet.round_ids == ["e.1"]


async def test_an_experiment_that_waits_for_its_next_try_can_be_stopped(world: World) -> None:
    world.fleet.choose = lambda _start: {"failure": "1 device needed, 0 there"}
    await submit(world.http, retries=50)

    async def waits() -> bool:
        return len(await history(world.http)) > 2  # the longer it waits, the surer the stop comes meanwhile

    await eventually(waits)
    answer = await world.http.post("/experiments/e/stop")
    assert answer.status_code == 202
    await in_state(world.http, "stopped")

    async def is_over() -> bool:
        return all(one["state"] == "failed" for one in await history(world.http))

    await eventually(is_over)
    assert len(world.fleet.starts) < len(await history(world.http))


async def test_evaluation_rounds_and_the_best_version(world: World) -> None:
    accuracy = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6, 5: 0.4}
    world.fleet.send = lambda start, _name: {"metrics": {"accuracy": accuracy[start["number"]]}}
    evaluate = {"every": 1}
    await submit(world.http, rounds=5, evaluate=evaluate, stop={"metric": "accuracy", "patience": 2})
    found = await in_state(world.http, "completed")
    assert world.fleet.round_ids == ["e.1", "e.e1", "e.2", "e.e2", "e.3", "e.e3", "e.4", "e.e4"]
    assert found["best"] == {"version": 2, "metric": "accuracy", "value": 0.9}
    assert "no better than the 0.9 of version 2" in found["reason"]
    modes = [(start["mode"], start["model_uri"][-1]) for start in world.fleet.starts[:4]]
    assert modes == [("train", "0"), ("evaluate", "1"), ("train", "1"), ("evaluate", "2")]
    await eventually(lambda: world.peers.aliases == {"e/latest": 4, "e/best": 2})
    evaluated = (await history(world.http))[1]
    assert (evaluated["kind"], evaluated["model_version"], evaluated["metrics"]) == (
        "evaluate",
        None,
        {"accuracy": 0.5},
    )
    assert "best" in {kind for _seq, kind, _data in await events(world.http)}
    last = (await world.http.get("/rounds/next")).json()  # an evaluation, which ended last, has no version
    assert (last["last_completed_round"], last["new_model_version"]) == ("e.4", 4)
    newest = (await world.http.get("/rounds?limit=1")).json()["rounds"][0]
    assert (newest["kind"], newest["number"], newest["attempt"]) == ("evaluate", 4, 1)


async def test_a_choice_that_no_try_can_make_ends_the_experiment_at_once(world: World) -> None:
    reason = "selection.names: there is no device 'p9'; did you mean 'p-1'?"
    world.fleet.choose = lambda _start: {"failure": reason, "final": True}
    await submit(world.http)
    found = await in_state(world.http, "failed")
    assert (found["reason"], found["done"]) == (reason, 0)
    await eventually(lambda: world.fleet.stops)
    assert [one["round_id"] for one in await history(world.http)] == ["e.1"]


async def test_a_program_that_says_it_cannot_evaluate_trains_no_round(world: World) -> None:
    world.fleet.choose = lambda _start: {"participants": ["p-1"], "program": PINNED, "functions": ["train"]}
    await submit(world.http, evaluate={"every": 3})
    found = await in_state(world.http, "failed")
    assert found["done"] == 0
    assert found["reason"].startswith(
        f"evaluate: {IMAGE} has no function for evaluations: mark one with @eval"
    )
    assert [one["participants"] for one in await history(world.http)] == [[]]
    await submit(world.http, id="f", rounds=1)
    await in_state(world.http, "completed", experiment_id="f")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([False, None, True], "the program of 1 of 3 devices left out what fedprox adds to gradients"),
        ([None, None, True], "the program of 2 of 3 devices does not say whether it adds what fedprox needs"),
        ([True, True, True], None),
    ],
)
async def test_a_program_that_leaves_out_its_part_of_the_strategy_is_told_once(
    world: World, said: list[bool | None], reason: str | None
) -> None:
    fields = [{} if one is None else {"corrected": one} for one in said]
    world.fleet.send = lambda _start, name: fields[PARTICIPANTS.index(name)]
    await submit(world.http, rounds=2, strategy="fedprox", evaluate={})
    await in_state(world.http, "completed")
    notes = [data["reason"] for _seq, kind, data in await events(world.http) if kind == "note"]
    assert len(notes) == (reason is not None)
    assert reason is None or reason in notes[0]
    kept = [one.get("corrected") for one in (await history(world.http))[0]["updates"]]
    assert kept == said


async def test_metrics_that_are_no_numbers_are_left_out_and_told_of(world: World) -> None:
    wrong: dict[str, Any] = {"p-1": "low", "p-2": "low", "p-3": None}
    world.fleet.send = lambda _start, name: {"metrics": {"loss": wrong[name], "share": 0.25}}
    await submit(world.http, rounds=1, evaluate={})
    await in_state(world.http, "completed")
    notes = [data["reason"] for _seq, kind, data in await events(world.http) if kind == "note"]
    assert set(notes) == {
        "metrics: 'loss' is null (p-3), 'loss' is text (p-1, p-2): left out; a metric is one finite number"
    }
    told = (await history(world.http))[0]
    assert told["metrics"] == {"share": 0.25}
    kept = {one["proplet_id"]: (one["metrics"], one["metrics_left_out"]) for one in told["updates"]}
    assert kept == {
        name: ({"share": 0.25}, {"loss": "null" if value is None else "text"})
        for name, value in wrong.items()
    }


async def test_what_an_evaluation_must_not_have_and_an_update_must(world: World) -> None:
    world.fleet.send = lambda start, _name: {} if start["mode"] == "train" else None
    await submit(world.http, rounds=1, evaluate={})
    await eventually(lambda: "e.e1" in world.fleet.round_ids)
    evaluation = {"round_id": "e.e1", "proplet_id": "p-1", "num_samples": 5, "metrics": {"accuracy": 0.5}}

    async def chosen() -> bool:
        return bool((await detail(world.http))["round"]["state"] == "collecting")

    await eventually(chosen)
    with_tensors = {**evaluation, "update": {"w": [1, 2, 3], "b": 0}}
    refused = await world.http.post("/update", json=with_tensors)
    assert (refused.status_code, "update" in refused.json()["error"]) == (400, True)
    for _ in range(2):  # the same again is fine
        assert (await world.http.post("/update", json=evaluation)).status_code == 200
    different = {**evaluation, "metrics": {"accuracy": 0.6}}
    assert (await world.http.post("/update", json=different)).status_code == 409
    for name in ("p-2", "p-3"):
        await world.http.post("/update", json={**evaluation, "proplet_id": name})
    await in_state(world.http, "completed")
    training = await world.http.post("/update", json={**evaluation, "round_id": "e.1"})
    assert (training.status_code, "update" in training.json()["error"]) == (400, True)


async def test_pause_lets_the_open_round_end_and_resume_goes_on(world: World) -> None:
    world.fleet.send = lambda start, name: None if start["number"] == 1 and name == "p-3" else {}
    await submit(world.http)
    await eventually(lambda: world.fleet.starts)
    assert (await world.http.post("/experiments/e/pause")).json()["state"] == "paused"
    assert (await world.http.post("/experiments/e/pause")).status_code == 202

    async def two_came() -> bool:
        return len((await detail(world.http))["round"]["received"]) == 2

    await eventually(two_came)
    world.fleet.send = lambda _start, _name: {}
    await world.fleet.speak(world.fleet.starts[0], "p-3")

    async def ended() -> bool:
        found = await detail(world.http)
        return found["done"] == 1 and found["round"] is None

    await eventually(ended)
    assert world.fleet.round_ids == ["e.1"]
    assert (await world.http.post("/experiments/e/resume")).json()["state"] == "running"
    await in_state(world.http, "completed")
    assert world.fleet.round_ids == ["e.1", "e.2", "e.3"]
    for verb in ("pause", "resume", "stop"):
        refused = await world.http.post(f"/experiments/e/{verb}")
        assert (refused.status_code, "it is completed" in refused.json()["error"]) == (409, True)


async def test_stop_cancels_the_open_round_and_its_tasks(world: World) -> None:
    world.fleet.send = lambda _start, name: {} if name == "p-1" else None
    await submit(world.http)

    async def one_came() -> bool:
        opened = (await detail(world.http))["round"]
        return opened is not None and len(opened["received"]) == 1

    await eventually(one_came)
    assert (await world.http.post("/experiments/e/stop")).json()["state"] == "stopped"
    await eventually(lambda: world.fleet.stops)
    assert world.fleet.stops[0]["participants"] == ["p-2", "p-3"]
    assert "stopped by request" in world.fleet.stops[0]["reason"]
    (only,) = await history(world.http)
    assert (only["state"], "the experiment is stopped" in only["reason"]) == ("failed", True)
    late = await world.http.post("/rounds/e.1/retry")
    assert (late.status_code, "of experiment e" in late.json()["error"]) == (409, True)
    assert [kind for _seq, kind, _data in await events(world.http)][-2:] == ["state", "round_ended"]


async def test_stop_while_nobody_is_chosen(world: World) -> None:
    world.fleet.choose = lambda _start: {"waiting": "2 devices needed, 1 there"}
    await submit(world.http)

    async def told() -> bool:
        found = (await detail(world.http))["round"]
        return found is not None and found["state"] == "created"

    await eventually(told)
    await eventually(lambda: world.fleet.starts)
    for _ in range(2):  # told once
        await world.fleet.answer(world.fleet.starts[0])
    await world.http.post("/experiments/e/stop")
    await eventually(lambda: world.fleet.stops)
    assert world.fleet.stops[0]["participants"] == []
    waiting = [data for _seq, kind, data in await events(world.http) if kind == "waiting"]
    assert [one["reason"] for one in waiting] == ["2 devices needed, 1 there"]
    proposal = {"participants": PARTICIPANTS}
    answer = await world.http.post("/rounds/e.1/participants", json=proposal)
    assert answer.json()["participants"] == []
    assert answer.json()["state"] == "failed"


async def test_the_first_choice_stays(world: World) -> None:
    world.fleet.choose = lambda _start: {"participants": ["p-3", "p-1"], "surplus": 1}
    world.fleet.send = lambda _start, _name: None
    await submit(world.http, rounds=1)
    await eventually(lambda: world.fleet.starts)

    async def chosen() -> bool:
        return bool((await detail(world.http))["round"]["state"] == "collecting")

    await eventually(chosen)
    again = await world.http.post("/rounds/e.1/participants", json={"participants": ["p-2"]})
    assert again.json()["participants"] == ["p-3", "p-1"]
    assert (await detail(world.http))["round"]["k_of_n"] == 1
    unknown = await world.http.post("/rounds/e.9/participants", json={"participants": ["p-2"]})
    assert unknown.status_code == 404
    nothing = await world.http.post("/rounds/e.1/participants", json={})
    assert nothing.status_code == 400
    world.fleet.send = lambda _start, _name: {}
    await world.fleet.speak(world.fleet.starts[0], "p-3")
    await in_state(world.http, "completed")
    await eventually(lambda: world.fleet.stops)
    assert world.fleet.stops[0] == {
        "round_id": "e.1",
        "participants": ["p-1"],
        "reason": "the round has enough updates",
    }


async def test_the_time_that_an_experiment_may_take(world: World) -> None:
    world.fleet.send = lambda _start, _name: None
    await submit(world.http, stop={"max_time_s": 0.3})
    found = await in_state(world.http, "completed")
    assert "stop.max_time_s: 0.3 s have passed" in found["reason"]
    await eventually(lambda: world.fleet.stops)


@pytest.mark.parametrize("jump_s", [-86400.0, 86400.0])
async def test_a_wall_clock_that_is_set_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    real = time.time
    world.fleet.send = lambda _start, _name: None
    await submit(world.http, rounds=2, timeout_s=600, stop={"max_time_s": 3600})
    await eventually(lambda: world.fleet.starts)
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    world.fleet.send = lambda _start, _name: {}
    for name in PARTICIPANTS:
        await world.fleet.speak(world.fleet.starts[0], name)
    assert (await in_state(world.http, "completed"))["done"] == 2


async def test_a_deadline_is_counted_from_the_choice(world: World) -> None:
    world.fleet.send = lambda _start, name: {} if name == "p-1" else None
    await submit(world.http, rounds=1, timeout_s=0.3)
    found = await in_state(world.http, "completed")
    assert found["done"] == 1
    (only,) = await history(world.http)
    assert len(only["updates"]) == 1


async def test_more_experiments_than_places_are_queued_in_order(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], COORDINATOR_MAX_EXPERIMENTS="2", **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        states = [(await submit(http, id=f"e-{n}", rounds=1))["state"] for n in range(4)]
        assert states == ["running", "running", "queued", "queued"]
        await eventually(lambda: len(fleet.round_ids) == 2)
        for action, state in (("pause", "paused"), ("resume", "queued")):
            assert (await http.post(f"/experiments/e-3/{action}")).status_code == 202
            await in_state(http, state, experiment_id="e-3")
        assert (await http.post("/experiments/e-0/stop")).status_code == 202
        await in_state(http, "running", experiment_id="e-2")
        assert (await detail(http, "e-3"))["state"] == "queued"
        fleet.send = lambda _start, _name: {}
        for start in list(fleet.starts):
            if start["round_id"] != "e-0.1":
                await fleet.answer(start)
        for number in (1, 2, 3):
            await in_state(http, "completed", experiment_id=f"e-{number}")


async def test_who_is_resumed_waits_for_a_place(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], COORDINATOR_MAX_EXPERIMENTS="1", **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        await submit(http, id="first", rounds=2)
        await submit(http, id="second", rounds=1)
        await http.post("/experiments/first/pause")
        await eventually(lambda: fleet.starts)
        for name in PARTICIPANTS:
            fleet.send = lambda _start, _name: {}
            await fleet.speak(fleet.starts[0], name)
        fleet.send = lambda _start, _name: None
        await in_state(http, "running", experiment_id="second")
        for _again in range(2):
            assert (await http.post("/experiments/first/resume")).json()["state"] == "queued"
        assert fleet.round_ids[0] == "first.1"
        assert "first.2" not in fleet.round_ids
        fleet.send = lambda _start, _name: {}
        assert (await http.post("/experiments/second/stop")).status_code == 202
        await in_state(http, "completed", experiment_id="first")
        told = [data["state"] for _seq, kind, data in await events(http, "first") if kind == "state"]
        assert told == ["queued", "running", "paused", "queued", "running", "completed"]


async def test_a_registry_that_hangs_at_a_first_start_blocks_nothing(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], COORDINATOR_MAX_EXPERIMENTS="1", **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        await submit(http, id="first")
        await submit(http)
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        gate = peers[0].pause_at("info")
        await http.post("/experiments/first/stop")
        await peers[0].reached.wait()
        assert (await detail(http))["state"] == "queued"
        assert (await http.post("/experiments/e/pause")).json()["state"] == "paused"
        assert (await http.post("/experiments/e/stop")).json()["state"] == "stopped"
        gate.set()
        del peers[0].gates["info"]
        await submit(http, id="last", rounds=1)
        await in_state(http, "completed", experiment_id="last")
        assert "e.1" not in fleet.round_ids


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"round": 3}, ("round", "did you mean 'rounds'?")),
        ({"strategy": "fedavvg"}, ("fedavvg", "fedavg")),
        ({"strategy": "FedAdam"}, ("did you mean 'fedadam'?", "there are fedavg, fedavgm, ")),
        ({"strategy": {"name": "fedavg", "speed": 3}}, ("speed",)),
        ({"selection": {"cuont": 3}}, ("selection.cuont", "count")),
        ({"k_of_n": 3, "selection": {"count": 2}}, ("k_of_n (3)", "selection.count (2)")),
        ({"strategy": {"name": "krum", "byzantine": 3}, "k_of_n": 8}, ("k_of_n is 8", "at least 9")),
        ({"strategy": "trimmed_mean", "selection": {"count": 4}}, ("selection.count is 4", "at least 5")),
        ({"program": ""}, ("program",)),
    ],
)
async def test_what_is_refused_names_the_field(
    world: World, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    for route in ("/experiments/check", "/experiments"):
        answer = await world.http.post(route, json=spec(**fields))
        assert answer.status_code == 400
        assert all(word in answer.json()["error"] for word in words), answer.text
    assert (await world.http.get("/experiments")).json()["total"] == 0


async def test_a_strategy_that_names_no_tensor_of_the_model_is_refused(world: World) -> None:
    """When it is submitted, not by every device in its first round; ``check`` knows the model if the experiment names one."""
    wrong = {"strategy": {"name": "sum", "min_devices": 1, "cells": ["counts"]}}
    answer = await world.http.post("/experiments", json=spec(**wrong))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(
        "strategy.cells: 'counts' matches no tensor of the model; there are "
    )
    named = spec(**wrong, model={"version": "latest"})
    assert (await world.http.post("/experiments/check", json=named)).status_code == 400
    assert (await world.http.get("/experiments")).json()["total"] == 0


async def test_strategies_are_described(world: World) -> None:
    found = (await world.http.get("/strategies")).json()["strategies"]
    assert [one["name"] for one in found] == strategy_names()
    one = (await world.http.get("/strategies/fedbuff")).json()
    assert (one, one["modes"]) == (found[strategy_names().index("fedbuff")], ["async"])
    assert one["parameters"][0] == {
        "name": "server_lr",
        "type": "number",
        "default": 1.0,
        "required": False,
        "range": "> 0",
        "description": "learning rate η_g of the server",
    }
    missing = await world.http.get("/strategies/FedBuff")
    assert (missing.status_code, "mean 'fedbuff'" in missing.json()["error"]) == (404, True)


async def test_the_description_of_the_api_has_the_fields_of_an_experiment(world: World) -> None:
    paths = (await world.http.get("/openapi.json")).json()["paths"]
    for path in ("/experiments", "/experiments/check"):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = body.get("anyOf", [body])[0]
        assert list(schema["properties"]) == list(ExperimentSpec.model_fields)
        assert schema["required"] == ["program", "rounds"]
        text, table = schema["properties"]["strategy"]["anyOf"]
        assert (text["type"], "program" in table["properties"]) == ("string", True)
        assert "$ref" not in str(body)


async def test_a_model_that_does_not_exist(world: World) -> None:
    for route in ("/experiments/check", "/experiments"):
        answer = await world.http.post(route, json=spec(model={"version": 7}))
        assert answer.status_code == 404
    assert answer.json()["error"].startswith("model.version: the model registry has no version 7")


async def test_unknown_experiments(world: World) -> None:
    for path in ("", "/history", "/events"):
        answer = await world.http.get(f"/experiments/nobody{path}")
        assert (answer.status_code, "nobody" in answer.json()["error"]) == (404, True)
    assert (await world.http.post("/experiments/nobody/stop")).status_code == 404
    bad = await world.http.get("/experiments/nobody/events", headers={"last-event-id": "x"})
    assert bad.status_code == 400


async def test_without_a_broker_nothing_is_begun(http: httpx.AsyncClient) -> None:
    answer = await http.post("/experiments", json=spec())
    assert (answer.status_code, "MQTT_BROKER" in answer.json()["error"]) == (503, True)


async def test_a_coordinator_that_is_down_when_the_deadline_passes(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    with process(env, tmp_path / "log") as one:
        async with client(env) as http, answering(http, broker_port, channel) as fleet:
            fleet.send = lambda start, name: None if start["number"] == 1 and name == "p-3" else {}
            await submit(http, timeout_s=2, rounds=2)

            async def two_came() -> bool:
                opened = (await detail(http))["round"]
                return opened is not None and len(opened["received"]) == 2

            await eventually(two_came)
            deadline = datetime.fromisoformat((await detail(http))["round"]["deadline"])
            one.kill()
            await eventually(lambda: datetime.now(UTC) > deadline)
            one.start()
            found = await in_state(http, "completed")
            assert found["done"] == 2
            assert [len(round_["updates"]) for round_ in await history(http)] == [2, 3]
            assert [seq for seq, _kind, _data in await events(http)] == list(
                range(1, 1 + len(await events(http)))
            )


@pytest.mark.parametrize("point", ["aggregate", "store", "stored"])
async def test_kill_9_while_a_version_is_made(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path, point: str
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    gate = peers[0].pause_at(point)
    with process(env, tmp_path / "log") as one:
        async with client(env) as http, answering(http, broker_port, channel):
            await submit(http)
            await asyncio.wait_for(peers[0].reached.wait(), 20)
            one.kill()
            peers[0].gates.clear()
            gate.set()
            one.start()
            found = await in_state(http, "completed")
            assert (found["done"], found["model_version"]) == (3, 3)
            assert [round_["round_id"] for round_ in await history(http)] == ["e.1", "e.2", "e.3"]


async def test_a_start_that_was_lost_is_published_again(
    broker_port: int,
    channel: Channel,
    peers: tuple[Peers, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("propeller.coordinator.experiment_runner.START_AGAIN_S", 0.2)
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http:
        await submit(http)
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        await in_state(http, "completed")
        assert fleet.round_ids[0] == "e.1"


async def test_a_transaction_of_unknown_end_is_read_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, fail = RoundStore.save, ["e.1", "e.2"]

    async def save_and_fail(self: RoundStore, changes: Sequence[RoundChange], *also: Also) -> None:
        await save(self, changes, *also)
        after = changes[-1].after
        if after.state is RoundState.COMPLETED and after.round_id in fail:
            fail.remove(after.round_id)
            raise OSError("the connection was lost")

    monkeypatch.setattr(RoundStore, "save", save_and_fail)
    await submit(world.http)
    found = await in_state(world.http, "completed")
    assert (found["done"], found["model_version"], fail) == (3, 3, [])
    assert world.fleet.round_ids == ["e.1", "e.2", "e.3"]
    numbers = [seq for seq, _kind, _data in await events(world.http)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_an_experiment_whose_model_is_gone_fails_and_blocks_no_other(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], COORDINATOR_MAX_EXPERIMENTS="1", **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        await submit(http, id="first")
        peers[0].versions[7] = peers[0].versions[0]
        await submit(http, id="gone", model={"version": 7})
        await submit(http, id="last", rounds=1)
    del peers[0].versions[7]  # the registry has lost it, and the coordinator knows it no more
    async with coordinating(env) as http, answering(http, broker_port, channel):
        assert (await http.post("/experiments/first/stop")).status_code == 202
        found = await in_state(http, "failed", experiment_id="gone")
        assert "round gone.1 cannot be started" in found["reason"]
        assert "version 7" in found["reason"]
        await in_state(http, "completed", experiment_id="last")


async def test_a_strategy_that_was_removed_fails_its_experiment(
    broker_port: int,
    channel: Channel,
    peers: tuple[Peers, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        await submit(http, strategy="fedmedian", timeout_s=0.5)

        async def is_chosen() -> bool:
            answer = await http.get("/rounds/e.1")
            return answer.is_success and answer.json()["state"] != "created"

        await eventually(is_chosen)

    def lost(*_given: Any) -> None:
        raise InvalidError("strategy: there is no 'fedmedian' any more")

    for module in ("propeller.coordinator.experiment_rounds", "propeller.fl.experiment.needs"):
        monkeypatch.setattr(f"{module}.read_strategy", lost)
    async with coordinating(env) as http:
        found = await in_state(http, "failed")
        assert "there is no 'fedmedian' any more" in found["reason"]
        assert "e.1.2 cannot be started" in found["reason"]


async def test_aliases_that_a_crash_at_the_end_left_behind_are_moved_at_the_next_start(
    broker_port: int,
    channel: Channel,
    peers: tuple[Peers, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    peers[0].unavailable.add("alias")
    monkeypatch.setattr("propeller.coordinator.experiment_aliases.END_WAIT_S", 0.1)
    async with coordinating(env) as http, answering(http, broker_port, channel):
        await submit(http, rounds=2, stop={"metric": "accuracy"})
        await in_state(http, "completed")
    assert peers[0].aliases == {}
    peers[0].unavailable.clear()
    async with coordinating(env):
        await eventually(lambda: peers[0].aliases == {"e/latest": 2, "e/best": 2})

        def is_settled() -> bool:
            file = Path(env["COORDINATOR_STATE"]) / "coordinator.db"
            return execute(file, "SELECT settled FROM experiments") == [(1,)]

        await eventually(is_settled)
    peers[0].requests.clear()
    async with coordinating(env) as http:
        assert (await detail(http))["state"] == "completed"
    assert "alias" not in peers[0].requests  # it is remembered that nothing is left to be done


async def test_events_are_removed_long_after_the_end(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        await submit(http, rounds=1)
        await in_state(http, "completed")
        fleet.send = lambda _start, _name: None
        await submit(http, id="open")
        found = await events(http)
    async with coordinating({**env, "COORDINATOR_KEEP_EVENTS": "0"}) as http:

        async def were_removed() -> bool:
            return len(await events(http)) == 2

        await eventually(were_removed)
        (seq, kind, data), end = await events(http)
        assert (seq, kind, data["first"], data["last"]) == (len(found) - 1, "removed", 1, len(found) - 1)
        assert end == found[-1]
        assert (await events(http, after=3))[0][2]["first"] == 4
        assert await events(http, after=len(found) - 1) == found[-1:]
        assert len((await history(http))[0]["updates"]) == 3
        await http.post("/experiments/open/stop")
        assert [seq for seq, _kind, _data in await events(http, "open")][:3] == [1, 2, 3]


@pytest.mark.parametrize(("field", "value"), [("speed", 3), ("program", "x" * 500), ("rounds", 0)])
async def test_a_stored_spec_that_is_refused_fails_its_experiment_alone(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path, field: str, value: Any
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        await submit(http, id="old", rounds=1)
        await in_state(http, "completed", experiment_id="old")
        fleet.send = lambda _start, name: {} if name == "p-1" else None
        await submit(http, name="mine")
        await submit(http, id="other", rounds=1)
        await eventually(lambda: len(fleet.round_ids) == 3)
    change_json(env, tables.experiments.c.spec, tables.experiments.c.id != "other", **{field: value})
    async with coordinating(env) as http:
        found = await in_state(http, "failed")
        assert re.search(f"refuses its spec: {field}: ", found["reason"])
        assert found["spec"][field] == value

        async def is_cancelled() -> bool:
            return [one["state"] for one in await history(http)] == ["failed"]

        await eventually(is_cancelled)
        assert (await detail(http, "old"))["state"] == "completed"
        assert {one["id"] for one in (await http.get("/experiments")).json()["experiments"]} == {
            "e",
            "old",
            "other",
        }
        assert (await detail(http, "other"))["state"] == "running"


async def test_a_stored_round_that_is_refused_is_tried_again(
    broker_port: int,
    channel: Channel,
    peers: tuple[Peers, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("propeller.coordinator.experiment_runner.START_AGAIN_S", 0.2)
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        await submit(http, rounds=1)
        await eventually(lambda: len(fleet.round_ids) == 1)
        alone = {"round_id": "alone", "participants": ["p-1"], "k_of_n": 1, "task_wasm_image": "r/i:1"}
        assert (await http.post("/experiments", json=alone)).status_code == 201
    change_json(env, tables.rounds.c.experiment, sa.true(), min_updates=0)
    async with coordinating(env) as http, answering(http, broker_port, channel):
        await in_state(http, "completed")
        first, second = await history(http)
        assert re.search("refuses what the round was asked to be: min_updates: ", first["reason"])
        assert (first["attempt"], second["attempt"], second["state"]) == (1, 2, "completed")
        found = (await http.get("/rounds/alone")).json()
        assert (found["state"], "min_updates" in found["reason"]) == ("failed", True)


async def test_a_stored_progress_that_is_refused_fails_its_experiment_alone(
    broker_port: int, channel: Channel, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.send = lambda _start, _name: None
        await submit(http)
        await submit(http, id="other", rounds=1)
        await eventually(lambda: len(fleet.round_ids) == 2)
    change_json(env, tables.experiments.c.progress, tables.experiments.c.id == "e", mood=3)
    async with coordinating(env) as http:
        found = await in_state(http, "failed")
        assert re.search("cannot read how far it was: unknown fields: mood", found["reason"])
        assert (await detail(http, "other"))["state"] == "running"


async def test_a_request_that_comes_when_the_experiment_is_over_is_refused(world: World) -> None:
    await submit(world.http, rounds=1)
    await in_state(world.http, "completed")
    for request in ("pause", "resume", "stop"):
        answer = await world.http.post(f"/experiments/e/{request}")
        assert (answer.status_code, "it is completed" in answer.json()["error"]) == (409, True)


async def test_a_submission_is_answered_although_its_first_round_cannot_begin_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.coordinator.experiments.ADMISSION_WAIT_S", 0.1)
    begin, broken = ExperimentStore.transact, True

    async def transact(self: ExperimentStore, also: Also) -> None:
        if broken:
            raise OSError("the database is away")
        await begin(self, also)

    monkeypatch.setattr(ExperimentStore, "transact", transact)
    assert (await submit(world.http))["state"] == "queued"
    broken = False
    await in_state(world.http, "completed")


async def test_an_aggregator_that_is_away_for_long_costs_no_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.process.retry.spread_out", lambda delay_s: delay_s / 50)
    world.peers.unavailable.add("aggregate")
    await submit(world.http)
    tries = len(RETRY_DELAYS) + 3
    await eventually(lambda: world.peers.requests.count("aggregate") > tries, timeout=20)
    assert (await detail(world.http))["round"]["state"] == "aggregating"
    world.peers.unavailable.clear()
    await in_state(world.http, "completed")
    assert world.fleet.round_ids == ["e.1", "e.2", "e.3"]
    waiting = [data["reason"] for _seq, kind, data in await events(world.http) if kind == "waiting"]
    assert waiting == ["aggregator answered 503: aggregate is down"]


async def test_an_experiment_is_stopped_while_the_aggregator_is_away(world: World) -> None:
    world.peers.unavailable.add("aggregate")
    await submit(world.http)
    await eventually(lambda: "aggregate" in world.peers.requests)
    assert (await world.http.post("/experiments/e/stop")).status_code == 202
    assert [kind for _seq, kind, _data in await events(world.http)][-1] == "round_ended"
    assert (await detail(world.http))["round"] is None


async def test_a_round_that_has_the_id_of_an_experiments_round(world: World) -> None:
    assert (await world.http.post("/experiments", json=experiment(round_id="e.1"))).status_code == 201
    assert (await submit(world.http))["state"] == "failed"
    assert "there is a round e.1 already" in (await detail(world.http))["reason"]
    assert (await submit(world.http, id="f", rounds=1))["state"] == "running"
    await in_state(world.http, "completed", experiment_id="f")
