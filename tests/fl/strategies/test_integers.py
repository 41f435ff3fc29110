"""Integers that stay integers, against Python's, which have no bounds."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.strategies import Contribution, aggregate, create_strategy
from propeller.fl.strategies.integers import differences, moved, round_about

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def of(dtype: str) -> st.SearchStrategy[int]:
    info = np.iinfo(dtype)
    ends = st.sampled_from([int(info.min), int(info.max), 0, 1])
    return ends | st.integers(int(info.min), int(info.max))


@given(st.data(), st.sampled_from(DTYPES))
def test_differences_and_sums_are_exact_or_the_nearest_that_there_is(data: Any, dtype: str) -> None:
    value, base = data.draw(of(dtype)), data.draw(of(dtype))
    difference = differences(np.array([value], dtype), np.array([base], dtype))
    assert difference.tolist() == [max(-(2**63) + 1, min(2**63 - 1, value - base))]
    info = np.iinfo(dtype)
    step = data.draw(st.integers(-(2**63), 2**63 - 1))
    found = moved(np.array([base], dtype), np.array([step]))
    assert found.dtype == dtype
    assert found.tolist() == [max(int(info.min), min(int(info.max), base + step))]


@given(st.integers(-(2**40), 2**40), st.integers(-40, 40))
def test_ties_go_to_the_even_number(base: int, halves: int) -> None:
    found = round_about(np.array([base]), np.array([halves / 2]))
    assert base + found.tolist()[0] == round(Fraction(2 * base + halves, 2))


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


@given(st.sampled_from(DTYPES), st.data())
def test_what_all_agree_on_is_exact_wherever_it_is(dtype: str, data: Any) -> None:
    value, base = data.draw(of(dtype)), data.draw(of(dtype))
    if abs(value - base) >= 2**63:
        base = value
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
