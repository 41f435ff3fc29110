"""Integers that stay integers, against Python's, which have no bounds."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.strategies import Contribution, aggregate, create_strategy
from propeller.fl.strategies.integers import as_weights, in_dtype, moved, offsets, widened

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def of(dtype: str) -> st.SearchStrategy[int]:
    info = np.iinfo(dtype)
    ends = st.sampled_from([int(info.min), int(info.max), 0, 1])
    return ends | st.integers(int(info.min), int(info.max))


def clipped(value: int, dtype: str) -> int:
    info = np.iinfo(dtype)
    return max(int(info.min), min(int(info.max), value))


@given(st.data(), st.sampled_from(DTYPES))
def test_offsets_and_moves_are_the_nearest_that_there_is(data: Any, dtype: str) -> None:
    start, value = data.draw(of(dtype)), data.draw(of(dtype))
    wide = widened(np.array([start], dtype))
    assert offsets(widened(np.array([value], dtype)), wide).tolist() == [float(value - start)]
    step = data.draw(st.integers(-(2**53), 2**53))
    found = moved(wide, np.array([float(step)]))
    assert found.tolist() == [clipped(start + step, str(wide.dtype))]
    assert in_dtype(found, np.dtype(dtype)).tolist() == [clipped(start + step, dtype)]


@given(st.data(), st.sampled_from(DTYPES))
def test_weights_of_updates_that_are_differences_or_of_another_base(data: Any, dtype: str) -> None:
    value, base, older = (np.array([data.draw(of(dtype))], dtype) for _ in range(3))
    assert as_weights(value, base, base).tolist() == value.tolist()
    moved_by = int(value[0]) - int(older[0])
    wide = str(widened(base).dtype)
    assert as_weights(value, base, older).tolist() == [clipped(int(base[0]) + moved_by, wide)]
    difference = np.array([clipped(moved_by, "int64")])
    assert as_weights(difference, base, None).tolist() == [clipped(int(base[0]) + int(difference[0]), wide)]


@given(st.integers(-(2**40), 2**40), st.integers(-40, 40))
def test_ties_go_to_the_even_number(start: int, halves: int) -> None:
    found = moved(np.array([start]), np.array([halves / 2]))
    assert found.tolist()[0] == round(Fraction(2 * start + halves, 2))


@given(st.data(), st.sampled_from(DTYPES))
def test_the_mean_is_exact(data: Any, dtype: str) -> None:
    """Of numbers that are within 2**40 of the base model's, wherever that is."""
    base = data.draw(of(dtype))
    info = np.iinfo(dtype)
    near = st.integers(max(int(info.min), base - 2**40), min(int(info.max), base + 2**40))
    updates = data.draw(st.lists(st.tuples(near, st.integers(1, 1000)), min_size=1, max_size=8))
    received = [
        (Contribution(slot, "", samples), {"n": np.array(value, dtype)})
        for slot, (value, samples) in enumerate(updates)
    ]
    model, _ = aggregate(create_strategy("fedavg"), {"n": np.array(base, dtype)}, None, received)
    total = sum(samples for _value, samples in updates)
    assert model["n"].dtype == dtype
    assert model["n"].shape == ()
    assert int(model["n"]) == round(Fraction(sum(value * samples for value, samples in updates), total))


@given(st.data(), st.sampled_from(DTYPES))
def test_the_mean_does_not_depend_on_the_base(data: Any, dtype: str) -> None:
    """Of numbers that are near to each other it is exact, however far the base model's is."""
    base, centre = data.draw(of(dtype)), data.draw(of(dtype))
    near = st.integers(clipped(centre - 2**40, dtype), clipped(centre + 2**40, dtype))
    values = data.draw(st.lists(near, min_size=3, max_size=3))
    received = [
        (Contribution(slot, "", slot + 1), {"n": np.array([v], dtype)}) for slot, v in enumerate(values)
    ]
    exact = {
        "fedavg": round(Fraction(values[0] + 2 * values[1] + 3 * values[2], 6)),
        "fedmedian": sorted(values)[1],
    }
    for name, expected in exact.items():
        model, _ = aggregate(create_strategy(name), {"n": np.array([base], dtype)}, None, received)
        assert model["n"].tolist() == [expected]


def test_numbers_at_both_ends_of_uint64() -> None:
    """Their differences are beyond int64."""
    ends = [np.array([0], np.uint64), np.array([2**64 - 1], np.uint64)]
    received = [(Contribution(0, "", 1), {"n": ends[0]}), (Contribution(1, "", 3), {"n": ends[1]})]
    for base in ends:
        model, _ = aggregate(create_strategy("fedavg"), {"n": base}, None, received)
        assert model["n"].tolist() == [3 * 2**62]
        median, _ = aggregate(create_strategy("fedmedian"), {"n": base}, None, received)
        assert median["n"].tolist() == [2**63]


@given(st.sampled_from(DTYPES), st.data())
def test_what_all_agree_on_is_exact_wherever_it_is(dtype: str, data: Any) -> None:
    value, base = data.draw(of(dtype)), data.draw(of(dtype))
    received = [(Contribution(slot, "", slot + 1), {"n": np.array([value], dtype)}) for slot in range(3)]
    for name in ("fedavg", "fedmedian", "norm_clipping"):
        model, _ = aggregate(create_strategy(name), {"n": np.array([base], dtype)}, None, received)
        assert model["n"].tolist() == [value]


@pytest.mark.parametrize(
    "update", [np.array([2.5, 300.0]), np.array([2.5, 300.0], np.float32), np.array([2, 300])]
)
def test_updates_in_another_dtype_are_rounded_into_the_base_models(update: Any) -> None:
    received = [(Contribution(0, "", 1), {"n": update})]
    model, _ = aggregate(create_strategy("fedavg"), {"n": np.array([0, 9], np.uint8)}, None, received)
    assert model["n"].dtype == np.uint8
    assert model["n"].tolist() == [2, 255]


def test_truth_values_go_by_weight_and_a_tie_keeps_the_base_models() -> None:
    votes = [(1, [True, True, False]), (2, [False, True, True]), (1, [True, False, False])]
    received = [
        (Contribution(slot, "", samples), {"m": np.array(vote)}) for slot, (samples, vote) in enumerate(votes)
    ]
    for base in ([True, False, False], [False, False, True]):
        model, _ = aggregate(create_strategy("fedavg"), {"m": np.array(base)}, None, received)
        assert model["m"].dtype == np.bool_
        assert model["m"].tolist() == [base[0], True, base[2]]
