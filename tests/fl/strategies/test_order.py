"""Median and trimmed mean, worked by hand."""

import numpy as np
import numpy.typing as npt
import pytest

from propeller.fl.strategies import Contribution, StrategyInputError, aggregate, create_strategy
from propeller.fl.tensors import Tensors
from support.strategies import one_round


def test_median_of_odd_and_even_numbers_of_updates() -> None:
    median = create_strategy("fedmedian")
    assert one_round(median, [0, 0], [[1, -5], [2, 1e9], [300, 3]], samples=[1, 1, 99])[0] == [2, 3]
    assert one_round(median, [0, 0], [[1, -5], [2, 1e9], [300, 3], [4, 4]])[0] == [3, 3.5]


def test_trimmed_mean() -> None:
    # ⌊0.3 · 10⌋ = 3 are left out at each end.
    strategy = create_strategy("trimmed_mean", {"beta": 0.3})
    values: list[npt.ArrayLike] = [[9], [-1e30], [3], [4], [5], [8], [1e30], [2], [1], [7]]
    assert one_round(strategy, [0], values)[0] == [(3 + 4 + 5 + 7) / 4]
    assert one_round(create_strategy("trimmed_mean", {"beta": 0.0}), [0], [[1], [2], [6]])[0] == [3]


def test_fewer_updates_than_can_be_trimmed() -> None:
    with pytest.raises(StrategyInputError, match=r"at least 5 updates, there are 4.*k_of_n"):
        one_round(create_strategy("trimmed_mean"), [0], [[1], [2], [3], [4]])
    assert create_strategy("trimmed_mean", {"beta": 0.3}).min_updates == 4


def test_integers_and_truth_values() -> None:
    base: Tensors = {
        "n": np.array([2**60 + 1, 5, -3]),
        "mask": np.array([True, False]),
        "small": np.zeros(1, np.uint8),
    }
    updates: list[Tensors] = [
        {
            "n": np.array([2**60 + 1, 5, 4]),
            "mask": np.array([False, False]),
            "small": np.array([250], np.uint8),
        },
        {
            "n": np.array([2**60 + 3, 6, -(2**63)]),
            "mask": np.array([False, True]),
            "small": np.array([0], np.uint8),
        },
        {
            "n": np.array([-(2**63), 2**63 - 1, 5]),
            "mask": np.array([True, True]),
            "small": np.array([7], np.uint8),
        },
    ]
    received = [(Contribution(slot, f"p-{slot}", 1), update) for slot, update in enumerate(updates)]
    median = create_strategy("fedmedian")
    model, _ = aggregate(median, base, None, received)
    assert model["n"].tolist() == [2**60 + 1, 6, 4]
    assert model["mask"].tolist() == [False, True]
    assert model["small"].tolist() == [7]
    assert [array.dtype for array in model.values()] == [array.dtype for array in base.values()]
    # Of two in the middle, their mean, and of two nearest the even one; a tie of truth values keeps the base model's.
    model, _ = aggregate(median, base, None, received[:2])
    assert model["n"].tolist()[:2] == [2**60 + 2, 6]
    assert model["mask"].tolist() == [False, False]


def test_a_tie_of_truth_values_keeps_the_base_models() -> None:
    received = [(Contribution(slot, "", 1), {"mask": np.array([slot == 1])}) for slot in range(2)]
    for base in (True, False):
        model, _ = aggregate(create_strategy("fedmedian"), {"mask": np.array([base])}, None, received)
        assert model["mask"].tolist() == [base]
