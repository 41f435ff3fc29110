"""Experiments on a whole stack: posted to the coordinator, and then nobody watches."""

import asyncio
import contextlib
import hashlib
import json
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from propeller.fl.tensors import to_json
from propeller.sdk import Experiment
from propeller.simulation import Simulation, simulate
from support.net import eventually
from support.python_programs import SOURCES, built
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(400)

HYPERPARAMS = {"epochs": 1, "lr": 0.05, "batch_size": 16}
SOFTMAX = {"w": [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], "b": [0.0, 0.0]}


def spec(up: Up, **fields: Any) -> dict[str, Any]:
    """Rounds of the guide's program on every proplet; on a busy machine one may be thought away for a moment."""
    program = next(iter(up.stack["images"].values()))
    return {
        "program": program,
        "rounds": 3,
        "hyperparams": HYPERPARAMS,
        "model": {"version": 0},
        "selection": {"min_available": 3},
        **fields,
    }


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

        async def read() -> httpx.Response | None:
            try:
                return await http.get(f"{up.url('model_registry')}/models/{version}")
            except httpx.TransportError:  # it is being restarted
                return None

        answer = await eventually(read, timeout=60, what=f"version {version}")
    assert answer is not None
    answer.raise_for_status()
    tensors = {name: value for name, value in answer.json().items() if name != "version"}
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_stack(tmp_path_factory.mktemp("stack") / "state") as running:
        yield running


def kill(up: Up, *services: str) -> None:
    """kill -9 of services, each as it runs now: ``stack.json`` has the processes of the start."""
    ports = {int(up.url(name).rpartition(":")[2]) for name in services}
    for process in up.processes():
        with contextlib.suppress(psutil.Error):
            listening = {one.laddr.port for one in process.net_connections("tcp") if one.status == "LISTEN"}
            if listening & ports:
                process.kill()


async def rounds_done(http: httpx.AsyncClient, experiment_id: str, count: int) -> None:
    """Wait until so many rounds are done."""

    async def done() -> bool:
        try:
            return bool((await http.get(f"/experiments/{experiment_id}")).json()["done"] >= count)
        except httpx.TransportError:  # the coordinator is being restarted
            return False

    await eventually(done, timeout=120, what=f"{count} rounds of {experiment_id}")


@pytest.fixture(scope="module")
def softmax(up: Up) -> dict[str, Any]:
    """A program that draws by the round's seed alone, not by the numbers of versions, and the model that it starts from."""
    program = built(SOURCES / "softmax.py")
    reference = f"{up.url('oci_registry').removeprefix('http://')}/softmax:v1"
    pushed = propeller("push", str(program), reference)
    assert pushed.returncode == 0, pushed.stderr
    answer = httpx.post(f"{up.url('model_registry')}/models", json={"model": SOFTMAX})
    return {"program": reference, "model": {"version": answer.json()["version"]}}


@pytest.fixture(scope="module")
def seeded(up: Up, softmax: dict[str, Any]) -> dict[str, Any]:
    """Twenty rounds of it."""
    return spec(up, rounds=20, selection={"seed": 7, "min_available": 3}, **softmax)


@pytest.fixture(scope="module")
def undisturbed(up: Up, seeded: dict[str, Any]) -> str:
    """The digest of what twenty rounds give when nothing happens."""

    async def run() -> str:
        async with coordinator(up) as http:
            found = await over(http, await submit(http, seeded))
        assert found["done"] == 20
        return await digest(up, found["model_version"])

    return asyncio.run(run())


async def datasets(up: Up) -> list[dict[str, Any]]:
    """What the proplets have, in the order of their names."""
    async with httpx.AsyncClient(base_url=up.url("data_store"), timeout=20) as http:
        return [(await http.get(f"/datasets/{one}")).json() for one in up.ids()]


def simulated_digest(ended: Simulation) -> str:
    """Of the model that a simulation made, as ``digest`` of one of the registry."""
    return hashlib.sha256(json.dumps(to_json(ended.model()), sort_keys=True).encode()).hexdigest()


async def test_a_simulation_of_twenty_rounds_gives_the_same_model(
    up: Up, seeded: dict[str, Any], undisturbed: str
) -> None:
    fields = {name: value for name, value in seeded.items() if name not in {"program", "model"}}
    made = Experiment(program="softmax", model=SOFTMAX, **fields)
    ended = simulate(made, data=await datasets(up), program=built(SOURCES / "softmax.py"))
    assert (ended.state, ended.clients) == ("completed", 60)
    assert simulated_digest(ended) == undisturbed


async def test_a_simulation_chooses_evaluates_and_measures_as_the_fleet_does(
    up: Up, softmax: dict[str, Any]
) -> None:
    given: dict[str, Any] = {
        "rounds": 6,
        "strategy": "fedadam",
        "hyperparams": HYPERPARAMS,
        "selection": {"count": 2, "min_available": 3, "seed": 3},
        "evaluate": {"every": 2},
        "update": {"compression": {"top_k": 0.5, "values": "int8"}},  # with what is left out added later
    }
    split = {"holdout": 0.25, "seed": 1}
    async with coordinator(up) as http:
        submitted = {**spec(up, **softmax), **given, "data": {"split": split}}
        found = await over(http, await submit(http, submitted))
        told = (await http.get(f"/experiments/{found['id']}/history")).json()["rounds"]
    made = Experiment(program="softmax", model=SOFTMAX, split=split, **given)
    ended = simulate(made, data=await datasets(up), program=built(SOURCES / "softmax.py"))
    history = ended.history()

    def measured(rounds: list[dict[str, Any]]) -> list[Any]:
        return [
            [one[name] for name in ("kind", "number", "metrics", "num_samples", "report")] for one in rounds
        ]

    assert measured(list(history)) == measured(told)
    chosen = [list(one["names"].values()) for one in told]
    assert [
        [name.replace("client", "proplet") for name in one["names"].values()] for one in history
    ] == chosen
    assert ended.status()["best"]["value"] == found["best"]["value"]
    assert simulated_digest(ended) == await digest(up, found["model_version"])


@pytest.mark.parametrize(
    "services",
    [
        ["coordinator"],
        ["manager"],
        ["aggregator"],
        ["model_registry"],
        ["coordinator", "manager", "aggregator", "model_registry"],
    ],
    ids="+".join,
)
async def test_kill_9_in_the_middle_changes_nothing(
    up: Up, seeded: dict[str, Any], undisturbed: str, services: list[str]
) -> None:
    async with coordinator(up) as http:
        experiment_id = await submit(http, seeded)
        for count in (3, 9, 14):
            await rounds_done(http, experiment_id, count)
            kill(up, *services)
        found = await over(http, experiment_id)
        assert (found["state"], found["done"], found["reason"]) == ("completed", 20, None)
        rounds = (await http.get(f"/experiments/{experiment_id}/history")).json()["rounds"]
    completed = [one for one in rounds if one["state"] == "completed"]
    assert [one["number"] for one in completed] == list(range(1, 21))
    assert await digest(up, found["model_version"]) == undisturbed


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


STRATEGIES: list[dict[str, Any]] = [
    {"name": "fedavgm"},
    {"name": "fedadam", "server_lr": 0.05},
    {"name": "fedprox", "mu": 0.1, "adaptive": True},
    {"name": "fedmedian"},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["name"])
async def test_a_strategy_goes_on_from_the_state_that_the_last_round_left(
    up: Up, strategy: dict[str, Any]
) -> None:
    async with coordinator(up) as http, httpx.AsyncClient(base_url=up.url("model_registry")) as registry:
        found = await over(http, await submit(http, spec(up, strategy=strategy)))
        assert (found["state"], found["reason"]) == ("completed", None)
        assert found["strategy"]["name"] == strategy["name"]

        async def latest() -> dict[str, Any]:
            answer: dict[str, Any] = (await registry.get(f"/models/{found['id']}/latest/info")).json()
            return answer if answer.get("version") == found["model_version"] else {}

        lineage = (await eventually(latest, what="the alias is that of the last version"))["lineage"]
    assert (lineage["experiment"], lineage["number"], lineage["round"]) == (
        found["id"],
        3,
        f"{found['id']}.3",
    )
    assert lineage["strategy"]["name"] == strategy["name"]
    assert lineage["program"]["digest"].startswith("sha256:")
    assert lineage["metrics"]["loss"] > 0
    assert len(lineage["updates"]) == 3


async def test_evaluation_on_devices_marks_the_best(up: Up) -> None:
    async with coordinator(up) as http:
        body = spec(
            up,
            evaluate={"every": 2},
            stop={"metric": "loss"},
            data={"split": {"holdout": 0.25, "seed": 1}},
        )
        found = await over(http, await submit(http, body))
        assert (found["state"], found["reason"]) == ("completed", None)
        rounds = (await http.get(f"/experiments/{found['id']}/history")).json()["rounds"]
    kinds = [(one["kind"], one["number"]) for one in rounds]
    assert kinds == [("train", 1), ("train", 2), ("evaluate", 2), ("train", 3), ("evaluate", 3)]
    assert found["best"]["metric"] == "loss"
    assert all(len(one["updates"]) == 3 for one in rounds)


async def test_the_coordinator_evaluates_by_itself(up: Up, softmax: dict[str, Any]) -> None:
    """On a data set that is no device's; NumPy measures the same."""
    samples = [{"x": [0.1 * number, 1.0 - 0.1 * number, 0.5], "y": number % 2} for number in range(8)]
    async with coordinator(up) as http, httpx.AsyncClient(timeout=20) as other:
        stored = await other.post(f"{up.url('data_store')}/datasets/test", json={"data": samples})
        assert stored.status_code == 201, stored.text
        central = {"on": "central", "dataset": "test", "every": 3}
        found = await over(http, await submit(http, spec(up, evaluate=central, **softmax)))
        assert (found["state"], found["reason"]) == ("completed", None)
        last = (await http.get(f"/experiments/{found['id']}/history")).json()["rounds"][-1]
        answer = await other.get(f"{up.url('model_registry')}/models/{found['model_version']}")
    assert (last["kind"], last["number"], last["num_samples"]) == ("evaluate", 3, 8)
    assert last["participants"] == ["coordinator"]
    model = answer.json()
    logits = np.array([sample["x"] for sample in samples]) @ np.array(model["w"]) + np.array(model["b"])
    labels = np.array([sample["y"] for sample in samples])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), labels]
    assert last["metrics"]["loss"] == pytest.approx(losses.mean(), rel=1e-5)


async def test_an_asynchronous_experiment_survives_kill_9(up: Up, softmax: dict[str, Any]) -> None:
    async with coordinator(up) as http:
        mode = {"kind": "async", "buffer": 2, "concurrency": 3}
        update = {"compression": {"top_k": 0.5, "values": "int8"}}
        body = spec(up, rounds=12, mode=mode, strategy="fedbuff", update=update, **softmax)
        experiment_id = await submit(http, body)
        for count in (2, 5, 8):
            await rounds_done(http, experiment_id, count)
            kill(up, "coordinator")
        found = await over(http, experiment_id)
        assert (found["state"], found["done"], found["reason"]) == ("completed", 12, None)
        rounds = (await http.get(f"/experiments/{experiment_id}/history")).json()["rounds"]
    merges = [one for one in rounds if one["kind"] == "train" and one["state"] == "completed"]
    assert [one["number"] for one in merges] == list(range(1, 13))
    assert all(len(one["updates"]) == 2 for one in merges)
    assert {one["kind"] for one in rounds} == {"train", "wave"}
    compressions = {each["compression"] for one in rounds for each in one["updates"]}
    assert compressions == {"top_k + int8 + zstd"}


COMPRESSIONS: list[tuple[Any, str]] = [
    ("int8", "int8 + zstd"),
    ({"top_k": 0.4, "values": "int4"}, "top_k + int4 + zstd"),
]


@pytest.mark.parametrize(("compression", "shown"), COMPRESSIONS, ids=("int8", "top_k"))
async def test_compressed_updates_make_a_model(
    up: Up, softmax: dict[str, Any], compression: Any, shown: str
) -> None:
    """Kill -9 in the middle changes nothing, as rounding is seeded and what devices keep goes by the round's number."""
    body = spec(
        up,
        rounds=6,
        selection={"seed": 3, "min_available": 3},
        update={"compression": compression},
        **softmax,
    )
    async with coordinator(up) as http:
        first = await over(http, await submit(http, body))
        again = await submit(http, body)
        await rounds_done(http, again, 2)
        kill(up, "coordinator")
        second = await over(http, again)
        rounds = (await http.get(f"/experiments/{again}/history")).json()["rounds"]
        table = (await http.get(f"/experiments/{again}/history?format=csv")).text.splitlines()
    assert (first["state"], second["state"], second["done"]) == ("completed", "completed", 6)
    assert await digest(up, first["model_version"]) == await digest(up, second["model_version"])
    assert {"bytes", "uncompressed_bytes", "compression", "compression_error"} <= set(table[0].split(","))
    for one in rounds:
        assert len(one["updates"]) == 3
        for update in one["updates"]:
            assert update["compression"] == shown
            assert 0 <= update["compression_error"] < 1
        received = sum(update["bytes"] for update in one["updates"])
        saved = sum(update["uncompressed_bytes"] for update in one["updates"]) - received
        assert (one["bytes"], one["bytes_saved"]) == (received, saved)
    assert rounds[-1]["metrics"]["loss"] < rounds[0]["metrics"]["loss"]
