"""What an experiment's strategy asks of its rounds."""

from typing import Any

import pytest

from propeller.errors import InvalidError
from propeller.fl.experiment import (
    Admitted,
    Experiment,
    ExperimentState,
    RoundEnded,
    RoundRefused,
    StartRound,
    check_strategy,
    fewest_updates,
    resume,
    step,
)
from propeller.protocol.experiments import ExperimentSpec


def spec(**fields: Any) -> ExperimentSpec:
    return ExperimentSpec.decode({"program": "registry/train:v1", "rounds": 2, **fields})


@pytest.mark.parametrize(
    ("fields", "fewest"),
    [
        ({}, 1),
        ({"min_updates": 3}, 3),
        ({"strategy": {"name": "krum", "byzantine": 2}}, 7),
        ({"strategy": {"name": "krum", "byzantine": 2}, "min_updates": 8}, 8),
        ({"strategy": {"program": "registry/mine:v1"}, "min_updates": 2}, 2),
    ],
)
def test_a_round_needs_as_many_updates_as_its_strategy(fields: dict[str, Any], fewest: int) -> None:
    given = spec(**fields)
    assert fewest_updates(given) == fewest
    effects = step(Experiment("e", given, 0), Admitted(at=0.0)).effects
    (start,) = [effect for effect in effects if isinstance(effect, StartRound)]
    assert start.request.min_updates == fewest
    assert start.request.policy.min_chosen == fewest


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"strategy": {"name": "bulyan", "byzantine": 2}, "k_of_n": 10}, "k_of_n is 10, .*at least 11"),
        ({"strategy": "krum", "selection": {"count": 4}}, "selection.count is 4, .*at least 5"),
        ({"strategy": "krum", "selection": {"names": ["a", "b"]}}, "selection.names is 2, .*at least 5"),
        (
            {"strategy": "krum", "mode": {"kind": "async", "buffer": 3, "concurrency": 6}},
            "mode.buffer is 3, .*at least 5",
        ),
        (
            {"strategy": {"name": "scaffold", "devices": 3}, "k_of_n": 4},
            "strategy.devices is 3, .*k_of_n is 4",
        ),
        ({"strategy": "scaffold", "selection": {"fraction": 0.5}}, "strategy.devices: .*selection.fraction"),
        ({"strategy": "scaffold", "selection": {"count": 3}}, "strategy.devices: .*selection.count"),
        ({"strategy": "scaffold", "k_of_n": 3}, "strategy.devices: .*k_of_n"),
        ({"strategy": "krumm"}, "'krum'"),
        (
            {"strategy": "fedbuff"},
            r'strategy.name: fedbuff is for mode.kind = "async", .* set mode = "async", or use fedavg',
        ),
        (
            {"strategy": "scaffold", "mode": "async"},
            'strategy.name: scaffold is for mode.kind = "sync", .*leave strategy out, which is fedbuff',
        ),
    ],
)
def test_what_a_strategy_cannot_work_with_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidError, match=named):
        check_strategy(spec(**fields))


def test_rounds_that_fit_are_not() -> None:
    check_strategy(spec(strategy={"name": "krum", "byzantine": 1}, k_of_n=5, selection={"count": 6}))
    check_strategy(spec(strategy={"program": "registry/mine:v1"}, k_of_n=1))
    check_strategy(spec(strategy="scaffold", selection={"fraction": 1.0}))
    check_strategy(spec(mode="async"))
    check_strategy(spec(strategy="fedadam", mode="async"))
    check_strategy(spec(strategy={"name": "scaffold", "devices": 9}, selection={"fraction": 0.5}, k_of_n=3))


@pytest.mark.parametrize(
    ("strategy", "needed"),
    [
        ("fedavg", False),
        ("scaffold", True),
        ({"name": "ditto"}, True),
        ({"name": "fedavg", "personal": ["bn*"]}, True),
        ({"program": "registry/mine:v1"}, False),
    ],
)
def test_a_strategy_that_needs_device_state_asks_for_devices_that_have_it(
    strategy: Any, needed: bool
) -> None:
    given = spec(strategy=strategy, evaluate={"every": 1})
    first = step(Experiment("e", given, 0), Admitted(at=0.0))
    evaluation = step(first.experiment, RoundEnded("e.1", 1.0, version=1))
    for effects in (first.effects, evaluation.effects):
        (start,) = [effect for effect in effects if isinstance(effect, StartRound)]
        assert start.request.policy.device_state is needed


def test_a_strategy_that_was_removed_stops_nothing_but_its_experiment() -> None:
    lost = spec(strategy={"name": "was-installed-once"}, min_updates=2)
    assert fewest_updates(lost) == 2
    first = step(Experiment("e", lost, 0), Admitted(at=0.0)).experiment
    assert any(isinstance(effect, StartRound) for effect in resume(first))
    second = step(first, RoundEnded("e.1", 1.0, reason="aggregation: no such strategy")).experiment
    assert step(second, RoundRefused("e.1", 2.0, "not open")).experiment == second
    end = step(second, RoundRefused("e.1.2", 2.0, "strategy: there is no such one")).experiment
    assert (end.state, end.is_settled) == (ExperimentState.FAILED, True)
    assert end.reason == "round e.1.2 cannot be started: strategy: there is no such one"
    assert step(end, RoundRefused("e.1.2", 3.0, "again")).experiment == end
