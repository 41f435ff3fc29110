"""FedNova, worked by hand from equations 11 and 12."""

import pytest

from propeller.fl.strategies import ParameterError, StrategyInputError, create_strategy
from propeller.fl.strategies.fednova import FedNova
from support.strategies import one_round


def test_updates_count_by_the_step() -> None:
    # p = 1/2 each; Δ/τ = 2/2 and 8/4; τ_eff = 3: w = 3 · (1 + 2) / 2. FedAvg would give 5.
    assert one_round(create_strategy("fednova"), [0], [[2], [8]], steps=[2, 4])[0] == [4.5]


def test_samples_count() -> None:
    # p = 1/4 and 3/4; τ_eff = 0.5 + 3 = 3.5; Σ p Δ/τ = 1/4 + 3/2.
    assert one_round(create_strategy("fednova"), [0], [[2], [8]], samples=[1, 3], steps=[2, 4])[0] == [
        3.5 * 1.75
    ]


def test_equal_steps_are_fedavg() -> None:
    w, _ = one_round(create_strategy("fednova"), [3, 3], [[1, 2], [5, 10]], samples=[1, 3], steps=[7, 7])
    assert w == [4, 8]


@pytest.mark.parametrize(
    ("parameters", "steps", "work"),
    [
        ({}, 3, 3),
        ({"momentum": 0.5}, 1, 1),
        ({"momentum": 0.5}, 2, 2.5),  # 1 + (1 + 0.5)
        ({"momentum": 0.5}, 3, 4.25),  # 1 + 1.5 + 1.75
        ({"proximal": 0.5}, 1, 1),
        ({"proximal": 0.5}, 2, 1.5),  # 1 + 0.5
        ({"proximal": 0.5}, 3, 1.75),
        ({"proximal": 1e-17}, 3, 3),
        ({"proximal": 1e-300}, 3, 3),
    ],
)
def test_the_norm_of_the_accumulation_vector(parameters: dict[str, float], steps: int, work: float) -> None:
    assert FedNova.model_validate(parameters).local_work(steps) == pytest.approx(work, rel=1e-15)


def test_steps_are_needed() -> None:
    with pytest.raises(StrategyInputError, match=r"'p-1'.*steps.*Update\(\.\.\., steps="):
        one_round(create_strategy("fednova"), [0], [[2], [8]], steps=[2, None])
    with pytest.raises(ParameterError, match="momentum and proximal"):
        create_strategy("fednova", {"momentum": 0.5, "proximal": 0.5})
