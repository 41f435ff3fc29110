"""Krum, Multi-Krum and Bulyan, worked by hand."""

import numpy as np
import numpy.typing as npt
import pytest

from propeller.fl.strategies import StrategyInputError, create_strategy
from propeller.fl.strategies.krum import krum_scores
from support.strategies import one_round

FIVE: list[npt.ArrayLike] = [[0], [1], [2.5], [4], [100]]
"""With f = 1, each counts its 2 nearest: 1 + 6.25, 1 + 2.25, 2.25 + 2.25, 2.25 + 9, 96² + 97.5²."""


def test_scores() -> None:
    points = np.array(FIVE).reshape(-1)
    distances = (points[:, None] - points[None, :]) ** 2
    assert krum_scores(distances, 2).tolist() == [7.25, 3.25, 4.5, 11.25, 96.0**2 + 97.5**2]


def test_krum_takes_the_best_update_as_it_is() -> None:
    assert one_round(create_strategy("krum"), [50], FIVE)[0] == [1]


def test_multi_krum_averages_the_best() -> None:
    assert one_round(create_strategy("multi_krum"), [50], FIVE)[0] == [(0 + 1 + 2.5 + 4) / 4]
    assert one_round(create_strategy("multi_krum", {"select": 2}), [50], FIVE)[0] == [1.75]


def test_bulyan() -> None:
    # n = 7, f = 1: θ = 5, chosen by Krum over 4, 3, 2, 1 and 1 nearest: 2, 3, 1, 4, 0. Their median is 2; the 3 nearest are 1, 2, 3.
    assert one_round(create_strategy("bulyan"), [9], [[0], [1], [2], [3], [4], [5], [1000]])[0] == [2]


def test_bulyan_bounds_what_krum_lets_through() -> None:
    """One coordinate of many that is far off hardly changes a distance (section 3 of the paper); the second step removes it."""
    rng = np.random.default_rng(0)
    updates = rng.normal(0, 1, (7, 1000))
    updates[3] = updates.mean(axis=0)
    updates[3, 0] = 20
    bulyan, _ = one_round(create_strategy("bulyan"), np.zeros(1000), [*updates])
    krum, _ = one_round(create_strategy("krum"), np.zeros(1000), [*updates])
    assert krum[0] == 20
    assert abs(bulyan[0]) < 2


def test_no_bad_device_at_all() -> None:
    values: list[npt.ArrayLike] = [[0], [1], [5]]
    assert one_round(create_strategy("bulyan", {"byzantine": 0}), [9], values)[0] == [2]
    assert one_round(create_strategy("multi_krum", {"byzantine": 0}), [9], values)[0] == [2]


@pytest.mark.parametrize(("name", "fewest"), [("krum", 7), ("multi_krum", 7), ("bulyan", 11)])
def test_so_many_updates_are_needed(name: str, fewest: int) -> None:
    strategy = create_strategy(name, {"byzantine": 2})
    assert strategy.min_updates == fewest
    with pytest.raises(
        StrategyInputError, match=f"{name}.*at least {fewest} updates, there are 5; raise k_of_n"
    ):
        one_round(strategy, [0], FIVE)


def test_multi_krum_cannot_select_bad_ones() -> None:
    with pytest.raises(StrategyInputError, match=r"strategy.select is 5, .*at most 4"):
        one_round(create_strategy("multi_krum", {"select": 5}), [0], FIVE)


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_numbers_beyond_any_distance_are_not_chosen(name: str) -> None:
    w, _ = one_round(create_strategy(name), [0], [[1], [1e300], [2], [3], [4]])
    assert 1 <= w[0] <= 4
