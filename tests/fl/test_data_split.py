"""Held-out samples: chosen once for a seed, the same wherever it is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.data_split import split_positions

COUNTS, PARTS, SEEDS = st.integers(2, 200), st.floats(0.001, 0.999), st.integers(0, 2**53)


@given(COUNTS, PARTS, SEEDS)
def test_each_sample_is_on_one_side(count: int, holdout: float, seed: int) -> None:
    train, held_out = split_positions(count, holdout, seed)
    assert sorted(train + held_out) == list(range(count))
    assert (train, held_out) == (sorted(train), sorted(held_out))
    assert len(held_out) == min(max(1, round(count * holdout)), count - 1)
    assert split_positions(count, holdout, seed) == (train, held_out)


@given(COUNTS, PARTS, SEEDS)
def test_one_more_sample_moves_at_most_one_across(count: int, holdout: float, seed: int) -> None:
    """Otherwise a device that collects data would be evaluated on what it was trained on before."""
    before, after = split_positions(count, holdout, seed)[1], split_positions(count + 1, holdout, seed)[1]
    assert len(set(before) - set(after)) <= 1
    assert len(set(after) - set(before) - {count}) <= 1


def test_known_splits() -> None:
    """Other numbers here would change what the devices of a running experiment train on."""
    assert split_positions(10, 0.2, 0)[1] == [3, 7]
    assert split_positions(10, 0.2, 1)[1] == [8, 9]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} samples cannot be split: at least 2 are needed"):
        split_positions(count, 0.5, 0)
