"""The geometric median where it is known from geometry."""

import numpy as np
import pytest

from propeller.fl.strategies import create_strategy
from support.strategies import one_round


def test_of_points_on_a_line_it_is_the_median() -> None:
    assert one_round(create_strategy("geometric_median"), [0.5], [[0], [1], [10]])[0] == pytest.approx(
        [1], abs=1e-4
    )


def test_of_the_corners_of_a_quadrilateral_it_is_where_the_diagonals_meet() -> None:
    """Fagnano's theorem."""
    w, _ = one_round(create_strategy("geometric_median"), [7, -7], [[0, 0], [2, 0], [4, 4], [0, 2]])
    assert w == pytest.approx([1, 1], abs=1e-4)


def test_of_a_triangle_it_is_fermats_point() -> None:
    """Corners (0, 0), (2, 0), (1, h): it sees each side under 120 degrees, so it lies at (1, tan 30°)."""
    w, _ = one_round(create_strategy("geometric_median"), [0, 0], [[0, 0], [2, 0], [1, 5]])
    assert w == pytest.approx([1, np.tan(np.pi / 6)], abs=1e-4)


def test_one_step_by_hand() -> None:
    # From the mean, 2: distances 2, 1, 3 of 0, 1, 5; weights 1/2, 1, 1/3: (1 + 5/3) / (11/6) = 16/11.
    strategy = create_strategy("geometric_median", {"iterations": 1})
    assert one_round(strategy, [0], [[0], [1], [5]])[0] == pytest.approx([16 / 11], rel=1e-12)


def test_more_than_half_of_the_samples_decide() -> None:
    w, _ = one_round(
        create_strategy("geometric_median"), [0, 0], [[1, 2], [50, 9], [-7, 80]], samples=[5, 2, 2]
    )
    assert w == pytest.approx([1, 2], abs=1e-3)
    strategy = create_strategy("geometric_median", {"weighting": "uniform"})
    assert one_round(strategy, [0], [[1], [5], [6]], samples=[9, 1, 1])[0] == pytest.approx([5], abs=1e-4)


def test_numbers_beyond_any_norm_have_no_weight() -> None:
    assert one_round(create_strategy("geometric_median"), [0], [[1], [1], [1e200]])[0] == [1]
