"""A simulation holds devices to the bounds that a fleet holds them to."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from propeller.fl.selection import Candidate
from propeller.fl.tensors import Tensors, to_safetensors
from propeller.protocol.experiments import ExperimentSpec
from propeller.simulation.description import DevicesSpec
from propeller.simulation.experiment import SimulatedExperiment
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask
from propeller.simulation.model_files import ModelFiles

BAD = "client-2"


class Poisoned:
    """Clients that all send ones, but for a bad one."""

    def __init__(self, samples: int, value: float) -> None:
        self.samples, self.value = samples, value

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Iterator[tuple[ClientReport, bytes]]:
        for task in tasks:
            bad = task.proplet_id == BAD
            header = {
                "round_id": round_task.env["ROUND_ID"],
                "proplet_id": task.proplet_id,
                "base_model_uri": round_task.env["MODEL_URI"],
                "num_samples": self.samples if bad else 10,
                "metrics": {"loss": 9.0 if bad else 1.0},
            }
            content = to_safetensors({"w": np.full(4, self.value if bad else 1.0, np.float32)})
            size = len(content)
            transfer = {"bytes": size, "uncompressed_bytes": size}
            yield ClientReport(task.id, header=header, bytes=size, transfer=transfer), content


def run(runner: Poisoned, **fields: object) -> SimulatedExperiment:
    model: Tensors = {"w": np.zeros(4, np.float32)}
    names = [Candidate(f"client-{number}", f"client-{number}") for number in range(1, 5)]
    made = SimulatedExperiment(
        "poisoned-1",
        ExperimentSpec.decode({"program": "poisoned", "rounds": 2, **fields}),
        model,
        names,
        DevicesSpec.decode({}).to_devices(),
        lambda _client: 1,
        runner,
        ModelFiles(),
        program="poisoned",
    )
    made.run()
    return made


@pytest.mark.parametrize("mode", ["sync", {"kind": "async", "buffer": 3, "concurrency": 4}])
@pytest.mark.parametrize(
    ("runner", "update", "named"),
    [
        (Poisoned(10**15, 1.0), {}, "update.max_samples"),
        (Poisoned(10, 1e6), {"max_norm": 3.0}, "more than the 3 of update.max_norm"),
        (Poisoned(10, 1.0), {"metric_ranges": {"loss": [0, 5]}}, "update.metric_ranges"),
    ],
)
def test_who_is_out_of_bounds_is_named_and_the_others_make_the_model(
    runner: Poisoned, update: dict[str, object], named: str, mode: object
) -> None:
    ended = run(runner, update=update, mode=mode)
    assert ended.record.experiment.state == "completed"
    assert ended.model(3)["w"].tolist() == [1.0] * 4
    reasons = {name: reason for one in ended.rounds for name, reason in one.round.failures.items()}
    assert list(reasons) == [BAD]
    assert named in reasons[BAD]


def test_a_share_bounds_what_a_device_counts_for_in_the_model_and_in_the_metrics() -> None:
    ended = run(Poisoned(10**9, 5.0), rounds=1, update={"max_share": 0.25})
    [record] = ended.rounds
    assert record.counted_samples()[BAD] == 10
    assert ended.model(2)["w"].tolist() == [2.0] * 4  # (1 + 5 + 1 + 1) / 4
    assert record.metrics == {"loss": 3.0}


def test_what_has_no_finite_result_is_made_without_whoever_is_to_blame() -> None:
    strategy = {"name": "fedadam", "server_lr": 0.1}
    ended = run(Poisoned(10, 1e30), strategy=strategy)  # squared, it leaves float32
    assert ended.record.experiment.state == "completed"
    alone = run(
        Poisoned(10, 1.0), strategy=strategy, selection={"names": ["client-1", "client-3", "client-4"]}
    )
    assert ended.model(3)["w"].tolist() == alone.model(3)["w"].tolist()
    for one in ended.rounds:
        assert list(one.round.failures) == [BAD]
        assert (
            "the norm of its difference to the base model is 2e+30, that of others" in one.round.failures[BAD]
        )
        assert "too large for float32" in one.round.failures[BAD]
        assert BAD not in one.updates
