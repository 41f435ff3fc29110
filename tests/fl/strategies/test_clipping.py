"""Norm clipping, worked by hand."""

import numpy as np
import pytest

from propeller.fl.strategies import Contribution, StrategyInputError, aggregate, create_strategy
from propeller.fl.tensors import Tensors
from support.strategies import one_round


def test_a_fixed_bound() -> None:
    # Δ = (30, 40) of norm 50 is cut to (3, 4); Δ = (0, 2) stays.
    w, _ = one_round(
        create_strategy("norm_clipping", {"bound": 5.0}), [1, 1], [[31, 41], [1, 3]], samples=[1, 3]
    )
    assert w == pytest.approx([1 + 3 / 4, 1 + 4 / 4 + 2 * 3 / 4], rel=1e-15)


def test_the_median_of_the_norms() -> None:
    # Norms 1, 2 and 9: the last is cut to 2.
    assert one_round(create_strategy("norm_clipping"), [0], [[1], [2], [-9]])[0] == pytest.approx(
        [(1 + 2 - 2) / 3]
    )


def test_the_norm_is_that_of_the_whole_update() -> None:
    base: Tensors = {"a": np.zeros(1), "b": np.zeros(()), "n": np.array(3)}
    update: Tensors = {"a": np.array([3.0]), "b": np.array(4.0), "n": np.array(9)}
    strategy = create_strategy("norm_clipping", {"bound": 1.0})
    model, _ = aggregate(strategy, base, None, [(Contribution(0, "p", 1), update)], part_bytes=1)
    assert model["a"].tolist() == pytest.approx([0.6])
    assert model["b"] == pytest.approx(0.8)
    assert model["n"] == 9


def test_numbers_beyond_any_norm_have_no_part() -> None:
    assert one_round(create_strategy("norm_clipping"), [0], [[1], [2], [1e200]])[0] == [1.0]


def test_there_is_no_bound_where_half_are_beyond_any_norm() -> None:
    with pytest.raises(StrategyInputError, match=r"strategy\.bound"):
        one_round(create_strategy("norm_clipping"), [0], [[1], [1e200], [1e200]])
    bounded = create_strategy("norm_clipping", {"bound": 1.0})
    assert one_round(bounded, [0], [[3], [1e200], [1e200]])[0] == pytest.approx([1 / 3])
