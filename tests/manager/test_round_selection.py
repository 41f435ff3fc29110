"""Rounds of experiments: who takes part is chosen here, kept by the coordinator, and launched once, whoever ends meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from propeller.protocol.programs import ProgramRequest, ResolvedProgram
from propeller.protocol.requirements import Requirements
from propeller.protocol.topics import Kind
from support.manager import FakeCoordinator, RunningManager, open_manager
from support.net import eventually, free_port

IMAGE = "ghcr.io/u/logreg:v1"
PINNED = f"ghcr.io/u/logreg@sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propeller.manager.round_selection.CHOOSE_AGAIN_S", 0.05)
    monkeypatch.setattr("propeller.manager.program_pins.ASK_AGAIN_S", 0.1)


@pytest.fixture
async def fleet(fl_manager: RunningManager) -> RunningManager:
    await fl_manager.add_proplets("p1", "p2", "p3", directed=True)
    return fl_manager


def start(round_id: str = "e.1", **fields: Any) -> dict[str, Any]:
    return {
        "experiment_id": "e",
        "round_id": round_id,
        "model_uri": "fl/models/global_model_v4",
        "task_wasm_image": PINNED,
        "hyperparams": {"lr": 0.1},
        "timeout_s": 60,
        "selection": {"seed": 3},
        "mode": "train",
        "number": 1,
        "attempt": 1,
        "seed": 3,
        **fields,
    }


def asked_by_the_manager(manager: RunningManager) -> str:
    """Where the manager asks the proxy."""
    return manager.mqtt.channel.said(Kind.REGISTRY_REQUEST, manager.settings.client_id)


async def begin(manager: RunningManager, **fields: Any) -> None:
    await manager.mqtt.publish(Kind.ROUND_START, start(**fields))


async def tasks(manager: RunningManager) -> list[dict[str, Any]]:
    return list((await manager.http.get("/tasks")).json()["tasks"])


async def test_what_the_coordinator_keeps_is_launched_in_its_order_with_what_programs_need(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    coordinator.participants["e.1"] = {
        "participants": ["p3", "p1"],
        "state": "collecting",
        "task_wasm_image": PINNED,
    }
    more = {"mode": "evaluate", "number": 1, "strategy": {"name": "fedprox", "mu": 0.1}}
    await begin(fleet, split={"holdout": 0.2, "seed": 1}, **more)
    await eventually(lambda: len(fleet.mqtt.starts()) == 2)
    assert sorted(coordinator.proposals[0]["participants"]) == ["p1", "p2", "p3"]
    env = {message["proplet_id"]: message["env"] for message in fleet.mqtt.starts()}
    assert set(env) == {"p1", "p3"}
    seeds = {proplet_id: found.pop("FL_SEED") for proplet_id, found in env.items()}
    assert all(0 <= int(seed) < 2**63 for seed in seeds.values())
    assert len(set(seeds.values())) == 2
    assert (
        env["p1"]
        == env["p3"]
        == {
            "ROUND_ID": "e.1",
            "MODEL_URI": "fl/models/global_model_v4",
            "HYPERPARAMS": '{"lr":0.1}',
            "FL_MODE": "evaluate",
            "EXPERIMENT_ID": "e",
            "FL_ROUND": "1",
            "FL_STRATEGY": '{"name":"fedprox","mu":0.1}',
            "FL_SPLIT": '{"holdout":0.2,"seed":1}',
        }
    )
    assert {message["image_url"] for message in fleet.mqtt.starts()} == {PINNED}


async def test_a_small_model_goes_out_with_the_starts_of_proplets_that_know_of_it(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await fleet.add_proplets("compat")
    model = {"text": '{"w":[1.5]}', "tensors": "YWJj"}
    coordinator.participants["e.1"] = {
        "participants": ["p1", "compat"],
        "state": "collecting",
        "task_wasm_image": PINNED,
        "model": model,
    }
    await begin(fleet)
    await eventually(lambda: len(fleet.mqtt.starts()) == 2)
    sent = {message["proplet_id"]: message.get("model") for message in fleet.mqtt.starts()}
    assert sent == {"p1": model, "compat": None}
    # A model for which a message has no room is left to the model registry.
    coordinator.participants["e.2"] = {
        **coordinator.participants["e.1"],
        "model": {"text": "1" * fleet.settings.max_message_bytes, "tensors": ""},
    }
    await begin(fleet, round_id="e.2")
    await eventually(lambda: len(fleet.mqtt.starts()) == 4)
    assert [message.get("model") for message in fleet.mqtt.starts()[2:]] == [None, None]


async def test_slots_are_in_the_order_of_the_names_that_proplets_have(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await fleet.add_proplets("a", name="proplet-10")
    await fleet.add_proplets("z", name="proplet-2")
    await begin(fleet, selection={"names": ["proplet-10", "z"]})
    await eventually(lambda: coordinator.proposals)
    assert coordinator.proposals[0]["participants"] == ["z", "a"]
    assert coordinator.proposals[0]["names"] == {"z": "proplet-2", "a": "proplet-10"}


async def test_a_start_that_comes_again_launches_nothing_again(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    for _ in range(3):
        await begin(fleet)
    await begin(fleet, round_id="e.2", number=2)
    await eventually(lambda: len(fleet.mqtt.starts()) == 6)
    names = [task["name"] for task in await tasks(fleet)]
    assert len(names) == len(set(names)) == 6
    assert len(coordinator.proposals) == 2


async def test_it_waits_for_enough_proplets_also_over_a_restart(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    given = {"coordinator_url": coordinator.url, "domain_id": "d-wait", "channel_id": "c-wait"}
    async with open_manager(broker_port, tmp_path, **given) as manager:
        await manager.add_proplets("p1", directed=True)
        await begin(manager, selection={"min_available": 2})
        await eventually(lambda: len(coordinator.proposals) >= 2)
        assert all("waiting" in proposal for proposal in coordinator.proposals)
        assert await tasks(manager) == []
    async with open_manager(broker_port, tmp_path, **given) as manager:
        await manager.add_proplets("p1", "p2", directed=True)
        await eventually(lambda: len(manager.mqtt.starts()) == 2)
    assert coordinator.participants["e.1"]["participants"]


async def test_too_few_until_the_timeout_is_a_failure_that_says_why(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await begin(fleet, selection={"min_available": 4}, timeout_s=0.2)
    await eventually(lambda: "failure" in coordinator.proposals[-1] if coordinator.proposals else False)
    assert "3" in coordinator.proposals[-1]["failure"]
    assert await tasks(fleet) == []


async def test_who_rests_by_its_own_policy_is_named_and_not_said_to_be_away(
    fl_manager: RunningManager, coordinator: FakeCoordinator
) -> None:
    await fl_manager.add_proplets("p1", "p2", directed=True, resting=True)
    await begin(fl_manager, timeout_s=0.2)
    await eventually(lambda: "failure" in coordinator.proposals[-1] if coordinator.proposals else False)
    failure = coordinator.proposals[-1]["failure"]
    names = [one["name"] for one in (await fl_manager.http.get("/proplets")).json()["proplets"]]
    assert "PROPLET_POLICY" in failure
    assert all(name in failure for name in names)
    assert "no device is alive" not in failure
    assert await tasks(fl_manager) == []


async def test_names_of_no_device_are_told_at_once_though_enough_others_are_there(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await begin(fleet, selection={"names": ["p1", "p9"], "count": 1})
    await eventually(lambda: coordinator.proposals)
    refused = coordinator.proposals[0]
    assert (refused["final"], "there is no device 'p9'; " in refused["failure"]) == (True, True)
    # Later the device was there once: it may come back.
    await begin(fleet, round_id="e.2", number=2, selection={"names": ["p1", "p9"]})
    await eventually(lambda: len(coordinator.proposals) > 1)
    assert "selection.names: no device 'p9' is alive" in coordinator.proposals[1]["waiting"]


async def test_names_that_identity_has_not_told_yet_are_waited_for_and_are_nobodys(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    away = {"identity_url": f"http://127.0.0.1:{free_port()}", "client_key": "k", "compat": "identity"}
    async with open_manager(broker_port, tmp_path, coordinator_url=coordinator.url, **away) as manager:
        await manager.add_proplets("p1", directed=True, name="proplet-1", tags=["gpu"])
        await begin(manager, round_id="e.1", selection={"names": ["proplet-1"]})
        await begin(manager, round_id="e.2", selection={"tags": ["gpu"]})
        await eventually(lambda: len(coordinator.proposals) >= 2)
        assert all("identity has not said yet" in one["waiting"] for one in coordinator.proposals)
        await begin(manager, round_id="late", selection={"names": ["proplet-1"]}, timeout_s=0.2)
        await eventually(lambda: [one for one in coordinator.proposals if "failure" in one])
        await begin(manager, round_id="all")
        await eventually(lambda: coordinator.participants.get("all"))
        assert coordinator.participants["all"]["participants"] == ["p1"]
        assert "proplet-1" not in {
            one["name"] for one in (await manager.http.get("/proplets")).json()["proplets"]
        }


async def test_hyperparameters_that_no_message_carries_end_the_experiment(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await begin(fleet, hyperparams={"blob": '"' * 3_000_000})
    await eventually(lambda: coordinator.proposals)
    refused = coordinator.proposals[0]
    assert (refused["final"], refused["failure"].partition(":")[0]) == (True, "hyperparams")


async def test_a_coordinator_that_is_away_is_asked_until_it_answers(
    fleet: RunningManager, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.refusal = (503, "starting")
    await begin(fleet)
    await eventually(lambda: len(coordinator.requests) > 4, timeout=20)
    assert await tasks(fleet) == []
    coordinator.refusal = None
    await eventually(lambda: len(fleet.mqtt.starts()) == 3)


async def test_device_state_that_proplets_do_not_have_fails_the_round_at_once(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await fleet.add_proplets("p4", directed=True, device_state=True)
    await begin(fleet, selection={"count": 2, "device_state": True})
    await eventually(lambda: coordinator.proposals)
    assert "strategy: it needs device state" in coordinator.proposals[0]["failure"]
    await begin(fleet, round_id="e.2", selection={"device_state": True})
    await eventually(lambda: len(coordinator.proposals) == 2)
    assert coordinator.proposals[1]["participants"] == ["p4"]


async def test_a_failure_that_was_not_foreseen_does_not_lose_a_round_that_waits(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    waiting = {"participants": [], "state": "created", "task_wasm_image": PINNED}
    coordinator.participants["e.1"] = waiting
    await begin(fleet)
    await eventually(lambda: coordinator.proposals)
    coordinator.participants["e.1"] = {"state": 5}  # no answer that can be read
    seen = len(coordinator.proposals)
    await eventually(lambda: len(coordinator.proposals) > seen + 1)
    coordinator.participants["e.1"] = {**waiting, "participants": ["p1"], "state": "collecting"}
    await eventually(lambda: len(fleet.mqtt.starts()) == 1)


async def test_a_round_that_was_cancelled_is_not_launched_and_its_tasks_are_stopped(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    coordinator.participants["e.1"] = {"participants": [], "state": "failed", "task_wasm_image": PINNED}
    await begin(fleet)
    await begin(fleet, round_id="e.2", number=2)
    await eventually(lambda: len(fleet.mqtt.starts()) == 3)
    await fleet.mqtt.publish(
        Kind.ROUND_STOP,
        {"round_id": "e.2", "participants": ["p1", "p2"], "reason": "the experiment is stopped"},
    )

    async def stopped() -> bool:
        states = {task["proplet_id"]: task["state"] for task in await tasks(fleet)}
        return states == {"p1": 4, "p2": 4, "p3": 2}

    await eventually(stopped)
    error = next(task["error"] for task in await tasks(fleet) if task["proplet_id"] == "p1")
    assert error == "stopped: the experiment is stopped"
    stops = [message for topic, message in fleet.mqtt.received if topic.startswith(Kind.STOP)]
    assert len(stops) == 2


async def test_a_round_that_waits_and_is_stopped_waits_no_more(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await begin(fleet, selection={"min_available": 4})
    await eventually(lambda: coordinator.proposals)
    await fleet.mqtt.publish(Kind.ROUND_STOP, {"round_id": "e.1", "participants": [], "reason": "stopped"})
    await fleet.add_proplets("p4", directed=True)
    await begin(fleet, round_id="e.2", number=2)
    await eventually(lambda: len(fleet.mqtt.starts()) == 4)
    assert {task["env"]["ROUND_ID"] for task in await tasks(fleet)} == {"e.2"}


async def test_a_tag_is_resolved_by_the_proxy_before_anything_is_launched(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    async def answer(_topic: str, payload: bytes) -> None:
        request = ProgramRequest.decode(payload)
        assert request.app_name == IMAGE
        resolved = ResolvedProgram(
            app_name=IMAGE, digest=f"sha256:{'b' * 64}", reference=PINNED, functions=["train"]
        )
        await fleet.mqtt.session.publish(
            fleet.mqtt.channel.answers(str(request.proplet_id)), resolved.encode()
        )

    await fleet.mqtt.session.subscribe(asked_by_the_manager(fleet), answer)
    await begin(fleet, task_wasm_image=IMAGE)
    await eventually(lambda: len(fleet.mqtt.starts()) == 3)
    assert (coordinator.proposals[0]["program"], coordinator.proposals[0]["functions"]) == (PINNED, ["train"])
    assert {message["image_url"] for message in fleet.mqtt.starts()} == {PINNED}


async def test_a_program_that_cannot_be_fetched_fails_the_round(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    async def answer(_topic: str, payload: bytes) -> None:
        request = ProgramRequest.decode(payload)
        resolved = ResolvedProgram(app_name=IMAGE, error="404: no such repository")
        await fleet.mqtt.session.publish(
            fleet.mqtt.channel.answers(str(request.proplet_id)), resolved.encode()
        )

    await fleet.mqtt.session.subscribe(asked_by_the_manager(fleet), answer)
    await begin(fleet, task_wasm_image=IMAGE)
    await eventually(lambda: coordinator.proposals)
    failure = coordinator.proposals[0]["failure"]
    assert failure == f"program {IMAGE} cannot be fetched: 404: no such repository"


async def test_without_an_answer_of_the_proxy_the_tag_is_used(
    fleet: RunningManager, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.manager.program_pins.ASK_AGAIN_S", 0.05)
    await begin(fleet, task_wasm_image=IMAGE)
    await eventually(lambda: len(fleet.mqtt.starts()) == 3)
    assert coordinator.proposals[0]["program"] == IMAGE
    # The next round does not wait for it again.
    asked: list[str] = []

    async def see(topic: str, _payload: bytes) -> None:
        asked.append(topic)

    await fleet.mqtt.session.subscribe(asked_by_the_manager(fleet), see)
    await begin(fleet, round_id="e.2", number=2, task_wasm_image=IMAGE)
    await eventually(lambda: len(fleet.mqtt.starts()) == 6)
    assert asked == []


REQUIRED = Requirements(python=">=3.11", dependencies=["scikit-learn>=1.4"])


def has(version: str) -> dict[str, Any]:
    return {"version": "3.12.0", "distributions": {"scikit-learn": version}}


@pytest.fixture
async def native_fleet(fl_manager: RunningManager) -> RunningManager:
    """Four devices, of which one has an old library, and one runs no native programs; the proxy knows what the program requires."""
    for name in ("p1", "p2"):
        await fl_manager.add_proplets(name, directed=True, name=name, native=has("1.5.0"))
    await fl_manager.add_proplets("p3", directed=True, name="p3", native=has("1.3.2"))
    await fl_manager.add_proplets("p4", directed=True, name="p4")

    async def answer(_topic: str, payload: bytes) -> None:
        request = ProgramRequest.decode(payload)
        resolved = ResolvedProgram(
            app_name=request.app_name, digest=f"sha256:{'b' * 64}", reference=PINNED, requirements=REQUIRED
        )
        topic = fl_manager.mqtt.channel.answers(str(request.proplet_id))
        await fl_manager.mqtt.session.publish(topic, resolved.encode())

    await fl_manager.mqtt.session.subscribe(asked_by_the_manager(fl_manager), answer)
    return fl_manager


LEFT_OUT = (
    "alive, but without what the program requires: p3 (it lacks scikit-learn>=1.4 (it has 1.3.2)), "
    "p4 (native programs are not switched on there (PROPLET_NATIVE_PYTHON))"
)
REMEDY = "a device tells what it has when it starts: install it there, and restart it"


async def test_devices_that_lack_what_a_program_requires_are_left_out_with_the_reason(
    native_fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await begin(native_fleet)
    await eventually(lambda: len(native_fleet.mqtt.starts()) == 2)
    proposal = coordinator.proposals[0]
    assert sorted(proposal["participants"]) == ["p1", "p2"]
    assert proposal["left_out"] == LEFT_OUT


async def test_too_few_that_have_it_is_waited_for_and_then_a_failure_that_names_them(
    native_fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await begin(native_fleet, selection={"seed": 3, "count": 3}, timeout_s=1)
    await eventually(lambda: coordinator.proposals and coordinator.proposals[-1].get("failure"))
    assert (
        coordinator.proposals[0]["waiting"]
        == f"3 devices needed, 2 there; there: p1, p2; {LEFT_OUT}; {REMEDY}"
    )
    assert coordinator.proposals[-1]["failure"] == coordinator.proposals[0]["waiting"]
    before = len(coordinator.proposals)
    await begin(native_fleet, round_id="e.2", selection={"seed": 3, "names": ["p1", "p3"]})
    await eventually(lambda: len(coordinator.proposals) > before)
    assert (
        coordinator.proposals[-1]["waiting"] == f"2 devices needed, 1 there; there: p1; {LEFT_OUT}; {REMEDY}"
    )
    # One that gets the library is chosen as soon as it says so.
    await native_fleet.mqtt.register("p3", directed=True, name="p3", native=has("1.4.0"))
    await eventually(lambda: {one["proplet_id"] for one in native_fleet.mqtt.starts()} == {"p1", "p3"})
