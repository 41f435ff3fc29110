"""Peers that are down or say no, and a coordinator that is killed: no acknowledged update is lost, none counts twice."""

import asyncio
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.coordinator.active_rounds import ActiveRound, Arrival
from propeller.coordinator.aggregation import RETRY_DELAYS, Aggregation
from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.round_runner import RoundRunner
from propeller.coordinator.rounds import RoundChange
from propeller.coordinator.store import Also, RoundStore
from propeller.fl.round import Answer
from propeller.process.settings import SettingsError
from support.coordinator import (
    PARTICIPANTS,
    Peers,
    Process,
    client,
    configure,
    coordinating,
    ended,
    environment,
    experiment,
    kept_updates,
    lose_updates,
    process,
    send,
    serving_peers,
    settings,
    update,
)
from support.databases import execute
from support.net import eventually, free_port


async def test_a_base_model_that_does_not_exist(http: httpx.AsyncClient) -> None:
    answer = await http.post("/experiments", json=experiment(model_ref="fl/models/global_model_v7"))
    assert (answer.status_code, "POST /models" in answer.json()["error"]) == (404, True)
    assert (await http.get("/rounds/r-1")).status_code == 404


async def test_a_registry_that_does_not_answer(api: httpx.AsyncClient) -> None:
    answer = await api.post("/experiments", json=experiment(model_ref="fl/models/global_model_v7"))
    assert (answer.status_code, "nobody cannot be reached" in answer.json()["error"]) == (502, True)


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("aggregate", "aggregator answered 503: aggregate is down"),
        ("store", "model registry answered 503: store is down"),
    ],
)
async def test_a_service_that_comes_back(
    http: httpx.AsyncClient, peers: tuple[Peers, str], monkeypatch: pytest.MonkeyPatch, point: str, told: str
) -> None:
    monkeypatch.setattr("propeller.process.retry.spread_out", lambda delay_s: delay_s / 50)
    peers[0].unavailable.add(point)
    await configure(http)
    await send(http, *PARTICIPANTS)
    tries = len(RETRY_DELAYS) + 3
    await eventually(lambda: peers[0].requests.count(point) >= tries, timeout=20)
    status = (await http.get("/rounds/r-1/complete")).json()
    assert (status["completed"], status["state"]) == (False, "aggregating")
    assert (await http.get("/rounds/r-1")).json()["waiting"] == told
    peers[0].unavailable.clear()
    assert (await ended(http))["model_version"] == 1
    assert "waiting" not in (await http.get("/rounds/r-1")).json()


async def test_a_round_that_waits_for_ever_is_cancelled_and_goes_on_when_it_is_retried(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    peers[0].unavailable.add("aggregate")
    await configure(http)
    await send(http, *PARTICIPANTS)
    await eventually(lambda: _waiting(http))
    answer = await http.post("/rounds/r-1/cancel")
    told = answer.json()
    assert (answer.status_code, told["state"], told["completed"]) == (200, "failed", False)
    assert told["reason"].startswith("cancelled by ")
    assert "waiting" not in (await http.get("/rounds/r-1")).json()
    again = await http.post("/rounds/r-1/cancel")
    assert (again.status_code, again.json()["error"]) == (409, "round r-1 cannot be cancelled: it is failed")
    assert (await http.post("/rounds/none/cancel")).status_code == 404

    peers[0].unavailable.clear()
    assert (await http.post("/rounds/r-1/retry")).status_code == 202
    assert (await ended(http))["model_version"] == 1
    assert (await http.post("/rounds/r-1/cancel")).status_code == 409


async def test_a_registry_that_has_lost_its_models_is_waited_for(
    http: httpx.AsyncClient, peers: tuple[Peers, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.process.retry.spread_out", lambda delay_s: delay_s / 50)
    monkeypatch.setattr(ModelRegistryClient, "specs", _asked_each_time(ModelRegistryClient.specs))
    await configure(http)
    models = peers[0].versions.copy()
    peers[0].versions.clear()
    peers[0].versions[5] = models[0]
    await send(http, *PARTICIPANTS)
    told = await eventually(lambda: _waiting(http))
    assert "does not have version 0, which the round started from" in told
    peers[0].versions.clear()
    peers[0].versions.update(models)
    assert (await ended(http))["model_version"] == 1


async def _waiting(http: httpx.AsyncClient) -> str:
    return str((await http.get("/rounds/r-1")).json().get("waiting", ""))


def _asked_each_time(specs: Any) -> Any:
    """As after a restart of the coordinator, which knows no version."""

    async def ask(self: ModelRegistryClient, version: int) -> Any:
        self._specs.clear()
        self._documents.clear()
        return await specs(self, version)

    return ask


@pytest.mark.parametrize("peer", ["aggregate", "store"])
async def test_a_refusal_fails_the_round_visibly_and_can_be_retried(
    http: httpx.AsyncClient, peers: tuple[Peers, str], peer: str
) -> None:
    peers[0].refusing.add(peer)
    await configure(http)
    await send(http, *PARTICIPANTS)
    status = await ended(http)
    assert (status["completed"], status["state"], "model_version" in status) == (False, "failed", False)
    assert f"{peer} says no" in status["reason"]
    assert sorted(peers[0].versions) == [0]
    peers[0].refusing.clear()
    assert (await http.post("/rounds/r-1/retry")).status_code == 202
    assert (await ended(http))["model_version"] == 1
    assert (await http.post("/rounds/r-1/retry")).status_code == 409


async def test_an_aggregate_that_is_not_of_the_models_shape_is_not_stored(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    peers[0].returns_wrong_shape = True
    await configure(http)
    await send(http, *PARTICIPANTS)
    status = await ended(http)
    assert (status["state"], "'w'" in status["reason"]) == ("failed", True)
    assert sorted(peers[0].versions) == [0]


@pytest.mark.usefixtures("place")
async def test_an_update_that_is_gone_fails_the_round(
    peers: tuple[Peers, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "propeller.coordinator.main.Aggregation", functools.partial(Aggregation, retry_delays=())
    )
    async with coordinating(environment(tmp_path, peers[1])) as http:
        await configure(http)
        await send(http, "p-1")
        lose_updates(tmp_path)
        await send(http, "p-2", "p-3")
        status = await ended(http)
    assert (status["state"], "no blob" in status["reason"]) == ("failed", True)


async def test_a_round_whose_updates_are_back_is_retried_by_itself(
    peers: tuple[Peers, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.coordinator.service.RETRY_INTERVAL_S", 0.1)
    monkeypatch.setattr(
        "propeller.coordinator.main.KeptUpdates", functools.partial(KeptUpdates, small_bytes=0)
    )
    folder, elsewhere = tmp_path / "updates", tmp_path / "elsewhere"
    async with coordinating(environment(tmp_path, peers[1])) as http:
        await configure(http)
        await send(http, "p-1", "p-2")
        elsewhere.mkdir()
        for file in folder.iterdir():
            file.rename(elsewhere / file.name)
        await send(http, "p-3")
        assert (await ended(http))["state"] == "failed"
        for file in elsewhere.iterdir():
            file.rename(folder / file.name)
        await eventually(lambda: _is_completed(http))
    assert peers[0].aggregations == [PARTICIPANTS]


async def _is_completed(http: httpx.AsyncClient) -> bool:
    return bool((await http.get("/rounds/r-1/complete")).json()["completed"])


async def test_updates_of_completed_rounds_can_be_kept(peers: tuple[Peers, str], tmp_path: Path) -> None:
    async with coordinating(environment(tmp_path, peers[1], COORDINATOR_KEEP_UPDATES="true")) as http:
        await configure(http)
        await send(http, *PARTICIPANTS)
        await ended(http)
    assert len(kept_updates(tmp_path)) == 3


async def test_a_transaction_that_was_committed_although_it_failed(
    http: httpx.AsyncClient, peers: tuple[Peers, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, fail = RoundStore.save, {"p-2", "p-3"}

    async def save_and_fail(self: RoundStore, changes: Sequence[RoundChange], *also: Also) -> None:
        await save(self, changes, *also)
        sender = changes[0].update.proplet_id if changes[0].update else ""
        if sender in fail:
            fail.remove(sender)
            raise OSError("the connection was lost")

    monkeypatch.setattr(RoundStore, "save", save_and_fail)
    await configure(http)
    for name in PARTICIPANTS:
        answer = await http.post("/update", json=update(name))
        assert answer.status_code == (200 if name == "p-1" else 500)
    # What the senders do then. The last one had closed the round.
    await send(http, "p-2", "p-3")
    assert (await ended(http))["num_updates"] == 3
    assert peers[0].aggregations == [PARTICIPANTS]


async def test_updates_that_come_together_are_stored_together(
    http: httpx.AsyncClient, peers: tuple[Peers, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, stored, gate = RoundStore.save, [], asyncio.Event()
    apply_update, came = RoundRunner.apply_update, []

    async def note(self: RoundRunner, active: ActiveRound, arrival: Arrival) -> Answer:
        came.append(arrival.update.proplet_id)
        return await apply_update(self, active, arrival)

    async def save_late(self: RoundStore, changes: Sequence[RoundChange], *also: Also) -> None:
        stored.append([change.update.proplet_id for change in changes if change.update])
        await gate.wait()
        await save(self, changes, *also)

    monkeypatch.setattr(RoundRunner, "apply_update", note)
    monkeypatch.setattr(RoundStore, "save", save_late)
    names = [f"p-{number}" for number in range(1, 9)]
    await configure(http, participants=names, k_of_n=7)
    # One of them twice, and one that differs from what counts by then.
    bodies = [*map(update, names), update("p-2"), {**update("p-3"), "num_samples": 99}]
    sent = []
    for body in bodies:
        sent.append(asyncio.create_task(http.post("/update", json=body)))
        await eventually(lambda: len(came) == len(sent))
    gate.set()
    codes = [answer.status_code for answer in await asyncio.gather(*sent)]
    assert stored[:2] == [["p-1"], names[1:7]]
    assert codes == [200] * 7 + [409, 200, 409]  # late, there already, and another one
    assert (await ended(http))["num_updates"] == 7


async def test_one_that_cannot_be_stored_keeps_none_from_it_that_came_with_it(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, tries = RoundStore.save, []

    async def refuse_one(self: RoundStore, changes: Sequence[RoundChange], *also: Also) -> None:
        names = [change.update.proplet_id for change in changes if change.update]
        tries.append(names)
        await asyncio.sleep(0.05)  # so that others wait
        if "p-2" in names:
            raise OSError("too large for the database")
        await save(self, changes, *also)

    monkeypatch.setattr(RoundStore, "save", refuse_one)
    names = [f"p-{number}" for number in range(1, 6)]
    await configure(http, participants=names, k_of_n=5)
    answers = await asyncio.gather(*(http.post("/update", json=update(name)) for name in names))
    assert [answer.status_code for answer in answers].count(500) == 1
    assert any(len(names) > 1 for names in tries)
    received = {one["proplet_id"] for one in (await http.get("/rounds/r-1")).json()["received"]}
    assert received == {"p-1", "p-3", "p-4", "p-5"}


async def test_a_round_that_another_coordinator_moved_is_read_back(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await configure(http)
    execute(tmp_path / "coordinator.db", "UPDATE rounds SET state = 'failed', reason = 'of the other one'")
    conflict = await http.post("/update", json=update("p-1"))
    assert (conflict.status_code, "only one coordinator" in conflict.json()["error"]) == (503, True)
    late = await http.post("/update", json=update("p-1"))
    assert (late.status_code, "it is failed" in late.json()["error"]) == (409, True)
    assert (await ended(http))["reason"] == "of the other one"


async def test_a_database_that_fails_when_the_deadline_passes(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failures = RoundStore.save, [OSError("disk full")]

    async def fail_first(self: RoundStore, *given: Any) -> None:
        if failures:
            raise failures.pop()
        await save(self, *given)

    monkeypatch.setattr("propeller.coordinator.round_runner.STORE_RETRY_DELAY_S", 0.01)
    monkeypatch.setattr(RoundStore, "save", fail_first)
    await configure(http, timeout_s=0.1)
    assert (await ended(http))["reason"].startswith("deadline")


# --- the process is killed ------------------------------------------------------------------------------------


@pytest.fixture
def killable(peers: tuple[Peers, str], tmp_path: Path) -> Iterator[Process]:
    with process(environment(tmp_path / "state", peers[1]), tmp_path / "log") as one:
        yield one


async def test_killed_while_collecting(killable: Process, peers: tuple[Peers, str]) -> None:
    async with client(killable.env) as http:
        await configure(http)
        await send(http, "p-1", "p-2")
        killable.kill()
        await asyncio.to_thread(killable.start)
        assert (await http.get("/rounds/r-1/complete")).json()["num_updates"] == 2
        await send(http, "p-1")  # again, as its sender may not have had the answer
        assert (await http.post("/update", json=update("p-2", value=7.0))).status_code == 409
        await send(http, "p-3")
        assert (await ended(http))["model_version"] == 1
    assert peers[0].aggregations == [PARTICIPANTS]


@pytest.mark.parametrize("point", ["aggregate", "store", "stored"])
async def test_killed_between_the_last_update_and_the_end(
    killable: Process, peers: tuple[Peers, str], point: str
) -> None:
    gate = peers[0].pause_at(point)
    async with client(killable.env) as http:
        await configure(http)
        await send(http, *PARTICIPANTS)
        await asyncio.wait_for(peers[0].reached.wait(), 10)
        killable.kill()
        peers[0].gates.clear()
        gate.set()
        await asyncio.to_thread(killable.start)
        status = await ended(http)
        assert (status["model_version"], status["num_updates"]) == (1, 3)
        # One new version, however often it was made.
        assert sorted(peers[0].versions) == [0, 1]
        assert all(one == PARTICIPANTS for one in peers[0].aggregations)
        await configure(http, "r-2", k_of_n=1, model_ref="fl/models/global_model_v1")
        body = update("p-1", "r-2", base_model_uri="fl/models/global_model_v1")
        assert (await http.post("/update", json=body)).status_code == 200
        assert (await ended(http, "r-2"))["model_version"] == 2


async def test_killed_at_any_moment_under_load(
    killable: Process, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    names = [f"p-{number}" for number in range(30)]
    acknowledged: set[str] = set()

    async def deliver(http: httpx.AsyncClient, name: str) -> None:
        while name not in acknowledged:
            try:
                answer = await http.post("/update", json=update(name))
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                assert answer.status_code == 200, answer.text
                acknowledged.add(name)

    async with client(killable.env) as http:
        await configure(http, participants=names, k_of_n=30)
        deliveries: list[asyncio.Task[None]] = []
        for enough, some in (
            (5, names[:12]),
            (15, names[12:24]),
        ):  # the round must not be over before it is killed
            deliveries += [asyncio.create_task(deliver(http, name)) for name in some]
            await eventually(lambda least=enough: len(acknowledged) >= least)  # type: ignore[misc]
            killable.kill()
            known = set(acknowledged)
            # An update counts exactly when its document is there.
            file = tmp_path / "state" / "coordinator.db"
            counted = [row[0] for row in execute(file, "SELECT digest FROM updates ORDER BY digest")]
            assert kept_updates(tmp_path / "state") == counted
            await asyncio.to_thread(killable.start)
            received = (await http.get("/rounds/r-1")).json()["received"]
            assert known <= {one["proplet_id"] for one in received}
        await asyncio.gather(*deliveries, *(deliver(http, name) for name in names[24:]))
        status = await ended(http)
    assert (status["num_updates"], status["model_version"]) == (30, 1)
    assert all(one == names for one in peers[0].aggregations)


async def test_a_deadline_that_passed_while_the_coordinator_was_down(
    killable: Process, peers: tuple[Peers, str]
) -> None:
    async with client(killable.env) as http:
        await configure(http, timeout_s=2)
        await send(http, "p-1")
        killable.kill()
        await asyncio.sleep(2)
        await asyncio.to_thread(killable.start)
        # There is a moment for what waits in the broker.
        await send(http, "p-2")
        status = await ended(http)
    assert (status["completed"], status["num_updates"]) == (True, 2)
    lines = [one for one in killable.lines() if one["msg"] == "Round timeout exceeded"]
    assert [(one["round_id"], one["updates"], one["timeout_s"], one["level"]) for one in lines] == [
        ("r-1", 2, 2.0, "WARNING")
    ]


@pytest.mark.usefixtures("place")
async def test_what_a_crash_left_of_a_completed_round_is_removed(
    peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1])
    async with coordinating({**env, "COORDINATOR_KEEP_UPDATES": "true"}) as http:
        await configure(http)
        await send(http, *PARTICIPANTS)
        await ended(http)
        await configure(http, "r-2")
        await send(http, "p-1", round_id="r-2")
    async with coordinating(env):
        await eventually(lambda: len(kept_updates(tmp_path)) == 1)


@pytest.mark.usefixtures("place")
async def test_the_updates_of_a_failed_round_are_removed_after_a_while(
    peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1])

    def left() -> int:
        return len(kept_updates(tmp_path))

    peers[0].refusing.add("aggregate")
    async with coordinating(env) as http:
        for round_id in ("r-1", "r-2"):
            await configure(http, round_id)
            await send(http, *PARTICIPANTS, round_id=round_id)
            assert (await ended(http, round_id))["state"] == "failed"
        await configure(http, "r-open")
        await send(http, "p-1", round_id="r-open")
    peers[0].refusing.clear()
    async with coordinating(env) as http:
        assert (await http.post("/rounds/r-1/retry")).status_code == 202
        assert (await ended(http, "r-1"))["state"] == "completed"
        await eventually(lambda: left() == 4)
    async with coordinating({**env, "COORDINATOR_KEEP_FAILED": "0s"}) as http:
        await eventually(lambda: left() == 1)
        answer = await http.post("/rounds/r-2/retry")
        assert (answer.status_code, "COORDINATOR_KEEP_FAILED" in answer.json()["error"]) == (409, True)
        assert (await http.get("/rounds/r-2")).json()["num_updates"] == 3
        await send(http, "p-2", "p-3", round_id="r-open")
        assert (await ended(http, "r-open"))["state"] == "completed"


async def test_the_guides_phrases_are_in_the_log_with_the_round_id(
    killable: Process, peers: tuple[Peers, str]
) -> None:
    async with client(killable.env) as http:
        await configure(http)
        await send(http, *PARTICIPANTS)
        await ended(http)
    said = [one["msg"] for one in killable.lines() if one.get("round_id") == "r-1"]
    assert said == [
        "Received experiment configuration",
        *["Received update"] * 3,
        "Round complete: received k_of_n updates",
        "Aggregated model stored",
    ]
    assert [one["proplet_id"] for one in killable.lines() if one["msg"] == "Received update"] == PARTICIPANTS


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"MODEL_REGISTRY_URL": ""}, "MODEL_REGISTRY_URL"),
        ({"AGGREGATOR_URL": ""}, "AGGREGATOR_URL"),
        ({"COORDINATOR_PORT": "x"}, "COORDINATOR_PORT"),
        ({"MQTT_BROKER": "http://x"}, "broker"),
        ({"COORDINATOR_DOMAIN_ID": "d"}, "COORDINATOR_CHANNEL_ID"),
        ({"PROPELLER_AUTH": "on", "PROPELLER_IDENTITY_URL": "http://x"}, "COORDINATOR_CLIENT_KEY"),
    ],
)
def test_settings_that_cannot_work(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**environment(tmp_path, "http://x"), **variables}.items():
        monkeypatch.setenv(name, value)
    from propeller.coordinator.settings import CoordinatorSettings

    with pytest.raises(SettingsError, match=named):
        CoordinatorSettings.load()


def test_the_mqtt_client_is_the_coordinators_own_client(tmp_path: Path) -> None:
    env = {"COORDINATOR_CLIENT_ID": "c-1", "COORDINATOR_CLIENT_KEY": "k", "MQTT_BROKER": "tcp://b:1"}
    one = settings(environment(tmp_path, "http://x", **env))
    assert (one.mqtt_credentials.mqtt_id, one.mqtt_credentials.username) == ("c-1", "c-1")
    assert one.mqtt_credentials.password == "k"
    assert one.credentials == ("c-1", "k")
    open_access = settings(environment(tmp_path, "http://x", **env, PROPELLER_AUTH="off"))
    assert open_access.credentials is None  # whoever does not ask for a key is not shown one
    assert "'k'" not in repr(one)


async def test_http_is_served_while_the_broker_is_away(peers: tuple[Peers, str], tmp_path: Path) -> None:
    broker = f"tcp://127.0.0.1:{free_port()}"
    async with coordinating(environment(tmp_path, peers[1], MQTT_BROKER=broker)) as http:
        await configure(http)
        await send(http, *PARTICIPANTS)
        assert (await ended(http))["completed"]


async def test_the_registry_is_asked_once_for_a_version(peers: tuple[Peers, str], tmp_path: Path) -> None:
    async with serving_peers() as (own, url), coordinating(environment(tmp_path, url)) as http:
        for number in range(3):
            await configure(http, f"r-{number}", model_ref=f"fl/models/global_model_v{number}", k_of_n=1)
            body = update("p-1", f"r-{number}", base_model_uri="")
            assert (await http.post("/update", json=body)).status_code == 200
            await ended(http, f"r-{number}")
        assert own.requests.count("model") == 1
