"""q-FedAvg, worked by hand from algorithm 2."""

from typing import Any

import pytest

from propeller.fl.strategies import StrategyInputError, create_strategy
from support.strategies import one_round


def losses(*values: float) -> list[dict[str, float]]:
    return [{"loss_before": value} for value in values]


def test_algorithm_2() -> None:
    # L = 2, q = 1, F = 1 and 3. ‖L Δ‖² = 4 for both: h = 1·4 + 2·1 and 1·4 + 2·3; w = (2·1·1 - 2·3·1) / 16.
    strategy = create_strategy("qfedavg", {"q": 1.0, "lr": 0.5})
    w, _ = one_round(strategy, [0], [[1], [-1]], samples=[1, 50], metrics=losses(1, 3))
    assert w == pytest.approx([-0.25], rel=1e-9)


def test_a_fraction_as_power() -> None:
    # L = 1, q = 0.5, F = 4, Δ = (3, 4): h = 0.5 · 4^-0.5 · 25 + 4^0.5 = 8.25; w = 2 Δ / 8.25.
    strategy = create_strategy("qfedavg", {"q": 0.5, "lr": 1.0})
    w, _ = one_round(strategy, [1, 1], [[4, 5]], metrics=losses(4))
    assert w == pytest.approx([1 + 6 / 8.25, 1 + 8 / 8.25], rel=1e-9)


def test_without_fairness_it_is_the_plain_mean() -> None:
    strategy = create_strategy("qfedavg", {"q": 0.0, "lr": 0.3})
    assert one_round(strategy, [8], [[1], [5]], samples=[1, 9], metrics=losses(0, 7))[0] == pytest.approx([3])


@pytest.mark.parametrize(
    ("metrics", "named"),
    [([{"loss": 1.0}], r"'loss_before'.*before training.*are: loss"), (losses(-1), "at least 0")],
)
def test_what_it_needs(metrics: Any, named: str) -> None:
    with pytest.raises(StrategyInputError, match=named):
        one_round(create_strategy("qfedavg", {"lr": 0.1}), [0], [[1]], metrics=metrics)


@pytest.mark.parametrize(
    ("q", "lr", "loss"), [(5.0, 0.1, 1e200), (1.0, 0.1, 1e308), (1.0, 1.0, 1e308), (0.0, 1e-320, 1.0)]
)
def test_what_is_beyond_float64_is_refused_by_name(q: float, lr: float, loss: float) -> None:
    """Of one update, or only of their sum."""
    strategy = create_strategy("qfedavg", {"q": q, "lr": lr})
    with pytest.raises(StrategyInputError, match=r"'p-\d'.*loss.*strategy\.q"):
        one_round(strategy, [0], [[1], [2], [1]], metrics=losses(loss, loss, loss))
