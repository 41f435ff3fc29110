"""Simulated experiments whose clients compute nothing: how much is kept, and how much many clients cost."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.selection import Candidate
from propeller.fl.tensors import Tensors, to_safetensors
from propeller.protocol.experiments import ExperimentSpec
from propeller.simulation import client_tasks
from propeller.simulation.description import DevicesSpec
from propeller.simulation.experiment import SimulatedExperiment
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask
from propeller.simulation.model_files import ModelFiles
from propeller.simulation.update_spool import UpdateSpool

LOGNORMAL = {"distribution": "lognormal", "median": 5, "sigma": 1}


class Idle:
    """Clients that send the same model, or fail, at no cost."""

    def __init__(self, model: Tensors, failing: frozenset[str] = frozenset()) -> None:
        self.content, self.failing = to_safetensors(model), failing
        self.most_at_once = 0

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Iterator[tuple[ClientReport, bytes]]:
        self.most_at_once = max(self.most_at_once, len(tasks))
        size = len(self.content)
        for task in reversed(tasks):  # in whatever order they end
            if task.proplet_id in self.failing:
                yield ClientReport(task.id, error="no memory"), b""
                continue
            header = {
                "round_id": round_task.env["ROUND_ID"],
                "proplet_id": task.proplet_id,
                "base_model_uri": round_task.env["MODEL_URI"],
                "num_samples": 1 + task.seed % 3,
                "metrics": {"loss": 0.5},
            }
            if round_task.evaluates:
                yield ClientReport(task.id, header=header), b""
                continue
            transfer = {"bytes": size, "uncompressed_bytes": size}
            yield ClientReport(task.id, header=header, bytes=size, transfer=transfer), self.content


def run(
    runner: Idle, clients: int, model: Tensors, devices: Any = None, **fields: Any
) -> SimulatedExperiment:
    spec = ExperimentSpec.decode({"program": "idle", "name": "idle", **fields})
    names = [Candidate(f"client-{number}", f"client-{number}") for number in range(1, clients + 1)]
    made = SimulatedExperiment(
        "idle-1",
        spec,
        model,
        names,
        DevicesSpec.decode(devices or {}).to_devices(),
        lambda _client: 1,
        runner,
        ModelFiles(),
        program="idle",
        has_central=True,
    )
    made.run()
    return made


def model(size: int = 4) -> Tensors:
    return {"w": np.ones(size, np.float32)}


def test_what_happens_in_a_round_happens_in_the_order_of_virtual_time() -> None:
    devices = {
        "seconds": {"distribution": "uniform", "low": 1, "high": 60},
        "seed": 4,
        "drop_out": {"part": 0.1, "noticed_after_s": 5},
    }
    failing = frozenset({"client-3", "client-7"})
    ended = run(Idle(model(), failing), 30, model(), devices, rounds=1, k_of_n=15, timeout_s=50)
    (record,) = ended.rounds
    came = [each.received_at for each in record.updates.values()]
    assert len(came) == 15
    assert came == sorted(came)
    assert record.closed_at == record.ended_at == came[-1] == ended.now
    reasons = set(record.round.failures.values())
    assert reasons == {"no memory", "the device dropped out"}
    assert failing.isdisjoint(record.updates)


def test_the_deadline_stands_between_what_came_before_and_after() -> None:
    devices = {"seconds": {"distribution": "uniform", "low": 1, "high": 60}, "seed": 4}
    ended = run(Idle(model()), 30, model(), devices, rounds=1, timeout_s=30)
    (record,) = ended.rounds
    assert 0 < len(record.updates) < 30
    assert all(each.received_at <= 30 for each in record.updates.values())
    assert record.closed_at == 30


def test_how_many_are_computed_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"seconds": LOGNORMAL, "seed": 4, "drop_out": {"part": 0.1, "noticed_after_s": 5}}

    def told(**fields: Any) -> list[Any]:
        runner = Idle(model(), frozenset({"client-3", "client-7"}))
        ended = run(runner, 30, model(), devices, rounds=3, timeout_s=20, **fields)
        return [ended.now, *(one.detail() for one in ended.rounds)]

    for fields in ({"k_of_n": 15}, {"mode": {"kind": "async", "buffer": 3}}, {"selection": {"count": 5}}):
        together = told(**fields)
        with monkeypatch.context() as patched:
            patched.setattr(client_tasks, "_MOST_COMPUTED", 1)
            assert told(**fields) == together


def test_central_evaluations_of_an_asynchronous_experiment() -> None:
    ended = run(
        Idle(model()),
        12,
        model(),
        {"seconds": LOGNORMAL, "seed": 2},
        rounds=5,
        mode={"kind": "async", "buffer": 3, "concurrency": 6},
        evaluate={"every": 2, "on": "central", "dataset": "test"},
        timeout_s=1000,
    )
    rounds = [one for one in ended.rounds if not one.round.plan.is_wave]
    assert [(one.kind, one.numbers["number"]) for one in rounds] == [
        ("train", 1),
        ("train", 2),
        ("evaluate", 2),
        ("train", 3),
        ("train", 4),
        ("evaluate", 4),
        ("train", 5),
        ("evaluate", 5),
    ]
    for before, one in itertools.pairwise(rounds):
        if one.kind == "evaluate":  # of the version that was just made, and it takes no time of devices
            assert one.round.plan.base_version == before.round.model_version
            assert one.created_at == one.ended_at == before.ended_at
    assert ended.record.experiment.best is not None


def test_updates_of_waves_are_dropped_once_they_are_merged() -> None:
    size, rounds = 250_000, 40  # of 1 MB each
    devices = {"seconds": {"distribution": "lognormal", "median": 5, "sigma": 1}, "seed": 1}
    mode = {"kind": "async", "buffer": 4, "concurrency": 8, "max_staleness": 20}
    held: list[int] = []

    class Watching(Idle):
        def run(
            self, round_task: RoundTask, tasks: Sequence[ClientTask]
        ) -> Iterator[tuple[ClientReport, bytes]]:
            held.append(experiment.kept_updates)
            return super().run(round_task, tasks)

    watching = Watching(model(size))
    spec = ExperimentSpec.decode({"program": "idle", "rounds": rounds, "mode": mode, "timeout_s": 1000})
    names = [Candidate(f"client-{number}", f"client-{number}") for number in range(1, 21)]
    made = DevicesSpec.decode(devices).to_devices()
    experiment = SimulatedExperiment(
        "idle-1", spec, model(size), names, made, lambda _client: 1, watching, ModelFiles(), program="idle"
    )
    experiment.run()
    assert experiment.record.experiment.done == rounds
    assert max(held) <= 4 + 8
    assert experiment.kept_updates == 0


def test_many_clients_are_computed_some_at_a_time() -> None:
    few, large = Idle(model()), model(4 * 2**20)  # of 16 MiB
    run(few, 3000, model(), rounds=1)
    assert few.most_at_once == 1024
    many = Idle(model(), frozenset(f"client-{number}" for number in range(50)))
    assert run(many, 40, large, rounds=1, retries=0).record.experiment.reason is not None
    assert many.most_at_once == 16


def test_an_aggregate_of_updates_in_a_file_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**fields: Any) -> bytes:
        ended = run(Idle({"w": np.arange(4, dtype=np.float32)}), 9, model(), rounds=2, **fields)
        return ended.model(3)["w"].tobytes()

    for strategy in ("fedavg", "fedadam", {"name": "krum", "byzantine": 2}):
        found = made(strategy=strategy)
        with monkeypatch.context() as patched:
            patched.setattr(UpdateSpool.__init__, "__defaults__", (100,))
            assert made(strategy=strategy) == found


def test_updates_that_are_kept_are_in_a_file_if_they_are_many(tmp_path: Path) -> None:
    spool = UpdateSpool(tmp_path, 1000)
    contents = {str(number): bytes([number]) * (100 + number) for number in range(100)}
    for name, content in contents.items():
        spool.add(name, content)
    assert {name: spool.read(name) for name in reversed(contents)} == contents
    assert list(tmp_path.iterdir()) == []  # it has no name
    spool.keep({"7", "9"})
    assert len(spool) == 2
    spool.add("new", b"x")
    assert (spool.read("9"), spool.read("new")) == (contents["9"], b"x")
    with pytest.raises(KeyError):
        spool.read("8")
    spool.keep(())
    assert len(spool) == 0
    spool.add("again", b"y")
    assert spool.read("again") == b"y"
    spool.clear()


def test_versions_are_in_files_and_a_few_in_memory() -> None:
    """Any of them can be read as long as there is who may ask; then the folder is gone."""
    models = ModelFiles()
    for version in range(1, 6):
        models.add(version, {"w": np.full(3, version, np.float32)})
    assert [float(models[version]["w"][0]) for version in range(1, 6)] == [1, 2, 3, 4, 5]
    assert models.newest == 5
    for missing in (0, 6, "1"):
        with pytest.raises(KeyError):
            models[missing]  # type: ignore[index]
    folder = models.folder
    assert len(list(folder.iterdir())) == 5
    del models
    assert not folder.exists()
