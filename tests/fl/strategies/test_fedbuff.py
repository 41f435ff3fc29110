"""FedBuff, worked by hand from algorithm 1."""

import numpy as np
import pytest

from propeller.fl.strategies import Contribution, aggregate, create_strategy


def test_stale_updates_count_less() -> None:
    # s = 1 and (1 + 3)^-0.5 = 1/2; Δ = 12 - 10 and 10 - 6: w = 10 + (2 + 2) / 2.
    received = [
        (Contribution(0, "p-0", 1), {"w": np.array([12.0])}),
        (Contribution(1, "p-1", 500, staleness=3, base=1), {"w": np.array([10.0])}),
    ]
    base, older = {"w": np.array([10.0])}, {"w": np.array([6.0])}
    model, _ = aggregate(create_strategy("fedbuff"), base, None, received, other_bases=[older])
    assert model["w"].tolist() == [12.0]
    # With η_g = 0.5, half of it; with a = 1, s = 1/4: (2 + 1) / 2.
    model, _ = aggregate(
        create_strategy("fedbuff", {"server_lr": 0.5}), base, None, received, other_bases=[older]
    )
    assert model["w"].tolist() == [11.0]
    model, _ = aggregate(
        create_strategy("fedbuff", {"exponent": 1.0}), base, None, received, other_bases=[older]
    )
    assert model["w"].tolist() == [11.5]


def test_differences_as_updates_are_the_same() -> None:
    received = [
        (Contribution(0, "p-0", 1, kind="delta"), {"w": np.array([2.0])}),
        (Contribution(1, "p-1", 1, staleness=3, kind="delta"), {"w": np.array([4.0])}),
    ]
    model, _ = aggregate(create_strategy("fedbuff"), {"w": np.array([10.0])}, None, received)
    assert model["w"].tolist() == [12.0]


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "geometric_median", "multi_krum", "norm_clipping"])
def test_other_strategies_take_updates_against_older_models(name: str) -> None:
    """Each moved its own base model by 2, and two sent that as a difference."""
    received = [
        (Contribution(0, "p-0", 1), {"w": np.array([12.0, 0]), "n": np.array([3])}),
        (Contribution(1, "p-1", 1, base=1), {"w": np.array([8.0, 1]), "n": np.array([2])}),
        (Contribution(2, "p-2", 1, kind="delta"), {"w": np.array([2.0, 0]), "n": np.array([1])}),
        (Contribution(3, "p-3", 1, base=1, kind="delta"), {"w": np.array([2.0, 0]), "n": np.array([1])}),
        (Contribution(4, "p-4", 1, base=1), {"w": np.array([8.0, 1]), "n": np.array([2])}),
    ]
    base, older = (
        {"w": np.array([10.0, 0]), "n": np.array([2])},
        {"w": np.array([6.0, 1]), "n": np.array([1])},
    )
    model, _ = aggregate(create_strategy(name), base, None, received, other_bases=[older])
    assert model["w"].tolist() == pytest.approx([12.0, 0], abs=1e-12)
    assert model["n"].tolist() == [3]
