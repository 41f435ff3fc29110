"""The server optimizers, worked by hand from their papers' formulas."""

import math

import pytest

from propeller.fl.strategies import create_strategy
from support.strategies import one_round


def test_fedavgm() -> None:
    # Δ = 1 in both rounds: v = 1, w = 1 + 1; then v = 0.5 + 1, w = 2 + 1.5.
    strategy = create_strategy("fedavgm", {"momentum": 0.5})
    w, state = one_round(strategy, [1], [[0], [3]], samples=[1, 2])
    assert w == [2]
    assert state.tensors["momentum/w"].tolist() == [1]
    w, state = one_round(strategy, w, [[3]], state=state)
    assert w == [3.5]
    assert state.tensors["momentum/w"].tolist() == [1.5]


def test_fedavgm_with_nesterovs_momentum_and_a_learning_rate() -> None:
    # v = Δ = 4; w = 1 + 0.5 · (4 + 0.25 · 4).
    strategy = create_strategy("fedavgm", {"momentum": 0.25, "server_lr": 0.5, "nesterov": True})
    assert one_round(strategy, [1], [[5]])[0] == [3.5]


def test_fedavgm_without_momentum_is_fedavg() -> None:
    strategy = create_strategy("fedavgm", {"momentum": 0.0})
    assert one_round(strategy, [7, 0], [[1, 2], [5, 10]], samples=[1, 3])[0] == [4, 8]


def test_fedadagrad() -> None:
    # v begins as τ² = 1. Δ = 2: v = 1 + 4, w = 2 / (√5 + 1). Then Δ = 2: v = 9, w = w + 2 / (3 + 1).
    strategy = create_strategy("fedadagrad", {"server_lr": 1.0, "tau": 1.0})
    w, state = one_round(strategy, [0], [[2]])
    assert w == pytest.approx([2 / (math.sqrt(5) + 1)], rel=1e-15)
    assert state.tensors["v/w"].tolist() == [5]
    after, state = one_round(strategy, w, [[w[0] + 2]], state=state)
    assert after == pytest.approx([w[0] + 0.5], rel=1e-15)
    assert state.tensors["v/w"].tolist() == pytest.approx([9], rel=1e-15)


def test_fedadam() -> None:
    # β₁ = β₂ = 0.5, τ = 1. Δ = 7: m = 3.5, v = 0.5 + 24.5 = 25, w = 6 · 3.5 / (5 + 1).
    # Then Δ = 5: m = 1.75 + 2.5, v = 12.5 + 12.5, w = 3.5 + 6 · 4.25 / (5 + 1). No bias correction.
    strategy = create_strategy("fedadam", {"server_lr": 6.0, "tau": 1.0, "beta_1": 0.5, "beta_2": 0.5})
    w, state = one_round(strategy, [0], [[7]])
    assert w == [3.5]
    assert state.tensors["m/w"].tolist() == [3.5]
    assert state.tensors["v/w"].tolist() == [25]
    w, state = one_round(strategy, w, [[8.5]], state=state)
    assert w == [7.75]
    assert state.tensors["m/w"].tolist() == [4.25]
    assert state.tensors["v/w"].tolist() == [25]


def test_fedyogi() -> None:
    # β₁ = β₂ = 0.5, τ = 1. Δ = 4: v = 1 below Δ² = 16, so v = 1 + 8; m = 2; w = 8 · 2 / (3 + 1).
    # Then Δ = 2: v = 9 above Δ² = 4, so v = 9 - 2; m = 1 + 1; w = 4 + 8 · 2 / (√7 + 1).
    strategy = create_strategy("fedyogi", {"server_lr": 8.0, "tau": 1.0, "beta_1": 0.5, "beta_2": 0.5})
    w, state = one_round(strategy, [0], [[4]])
    assert w == [4]
    assert state.tensors["v/w"].tolist() == [9]
    w, state = one_round(strategy, w, [[6]], state=state)
    assert w == pytest.approx([4 + 16 / (math.sqrt(7) + 1)], rel=1e-15)
    assert state.tensors["v/w"].tolist() == [7]


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_the_defaults_are_the_papers(name: str) -> None:
    strategy = create_strategy(name)
    found = strategy.model_dump()
    assert found["tau"] == 1e-3
    assert found["beta_1"] == (0 if name == "fedadagrad" else 0.9)
    assert found.get("beta_2", 0.99) == 0.99
    # The first step of any of them from Δ = 0 is none.
    w, state = one_round(strategy, [2.0], [[2.0]])
    assert w == [2.0]
    assert state.tensors["m/w"].tolist() == [0]
