"""Sums and extremes of updates: against Python's exact integers and fractions, and math.fsum."""

import tracemalloc
from fractions import Fraction
from functools import reduce
from math import fsum
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from propeller.fl.strategies import (
    Contribution,
    StrategyInputError,
    UpdateError,
    aggregate,
    create_strategy,
    make_plan,
)
from propeller.fl.strategies.part import PartAggregation
from propeller.fl.strategies.strategy import Measured
from propeller.fl.tensors import TensorError, Tensors

FINITE = st.floats(-1e300, 1e300)


def summed(base: Tensors, updates: list[Tensors], **params: Any) -> Tensors:
    received = [(Contribution(slot, f"p-{slot}", 1), update) for slot, update in enumerate(updates)]
    return aggregate(create_strategy("sum", {"min_devices": 1, **params}), base, None, received)[0]


@given(
    dtype=st.sampled_from([np.int8, np.int32, np.int64, np.uint8, np.uint64]),
    count=st.integers(1, 9),
    data=st.data(),
)
def test_integers_are_exact_or_refused(dtype: Any, count: int, data: st.DataObject) -> None:
    rows = [data.draw(npst.arrays(dtype, 3)) for _ in range(count)]
    exact = [sum(int(row[column]) for row in rows) for column in range(3)]
    info = np.iinfo(dtype)
    base = data.draw(npst.arrays(dtype, 3))
    updates: list[Tensors] = [{"n": row} for row in rows]
    if all(info.min <= number <= info.max for number in exact):
        found = summed({"n": base}, updates)["n"]
        assert found.dtype == dtype
        assert found.tolist() == exact
        assert summed({"n": base}, updates[::-1])["n"].tolist() == exact
    else:
        with pytest.raises(TensorError, match="'n': the sum is beyond"):
            summed({"n": base}, updates)


@given(st.lists(npst.arrays(np.float64, 4, elements=FINITE), min_size=1, max_size=30))
def test_floating_point_sums_are_within_the_papers_bound(rows: list[Any]) -> None:
    unit = Fraction(1, 2**53)
    updates: list[Tensors] = [{"x": row} for row in rows]
    found = summed({"x": np.full(4, 7.0)}, updates)["x"]
    gamma = Fraction((len(rows) - 1) * unit, 1 - (len(rows) - 1) * unit)
    for column in range(4):
        numbers = [Fraction(float(row[column])) for row in rows]
        exact, sizes = sum(numbers, Fraction()), sum(map(abs, numbers), Fraction())
        tiny = Fraction(1, 2**1074)  # where the result is subnormal
        bound = unit * abs(exact) + gamma * gamma * sizes + tiny
        assert abs(Fraction(float(found[column])) - exact) <= bound


def test_numbers_that_cancel_are_summed_as_if_there_were_no_rounding() -> None:
    numbers = [1e16, 1.0, -1e16, 3.0, 0.125]
    found = summed({"x": np.zeros(())}, [{"x": np.array(number)} for number in numbers])["x"].item()
    assert found == fsum(numbers) == 4.125
    assert reduce(add, numbers) != fsum(numbers)  # sum() itself does better from Python 3.12 on


@given(st.lists(npst.arrays(np.float64, 3, elements=FINITE), min_size=1, max_size=9))
def test_extremes(rows: list[Any]) -> None:
    updates: list[Tensors] = [{"a.min": row, "a.max": row, "any": row > 0} for row in rows]
    base: Tensors = {"a.min": np.zeros(3), "a.max": np.zeros(3), "any": np.zeros(3, bool)}
    found = summed(base, updates, minimum="*.min", maximum=["*.max"])
    assert found["a.min"].tolist() == np.min(rows, axis=0).tolist()
    assert found["a.max"].tolist() == np.max(rows, axis=0).tolist()
    assert found["any"].tolist() == np.any(np.array(rows) > 0, axis=0).tolist()


@given(
    rows=st.lists(npst.arrays(np.int64, 5, elements=st.integers(0, 3)), min_size=3, max_size=8),
    least=st.integers(1, 3),
)
def test_a_cell_of_too_few_devices_is_not_published(rows: list[Any], least: int) -> None:
    base: Tensors = {"bins": np.zeros(5, np.int64), "all": np.zeros(5, np.int64)}
    base |= {"low": np.zeros(5), "high": np.zeros(5)}
    beyond = np.finfo(np.float64).max
    updates: list[Tensors] = [
        {"bins": row, "all": row, "low": np.where(row, row, beyond), "high": np.where(row, row, -beyond)}
        for row in rows
    ]
    found = summed(
        base, updates, min_devices=least, minimum="low", maximum="high", cells=["bins", "low", "high"]
    )
    for column in range(5):
        having = sum(int(row[column] != 0) for row in rows)
        total = sum(int(row[column]) for row in rows)
        assert found["bins"][column] == (total if having >= least else 0)
        assert found["all"][column] == total
        numbers = [int(row[column]) for row in rows if row[column]]
        assert found["low"][column] == (min(numbers) if having >= least else beyond)
        assert found["high"][column] == (max(numbers) if having >= least else -beyond)


def test_a_difference_is_added_to_its_base() -> None:
    base: Tensors = {"x": np.array([10.0]), "n": np.array([5])}
    received: list[tuple[Contribution, Tensors]] = [
        (Contribution(0, "a", 1, kind="delta"), {"x": np.array([1.0]), "n": np.array([-2])}),
        (Contribution(1, "b", 900), {"x": np.array([3.0]), "n": np.array([4])}),
    ]
    found = aggregate(create_strategy("sum", {"min_devices": 2}), base, None, received)[0]
    assert (found["x"].item(), found["n"].item()) == (14.0, 7)


def test_too_few_devices_are_refused_before_anything_is_added() -> None:
    strategy = create_strategy("sum")
    with pytest.raises(
        StrategyInputError, match="sum with these parameters needs at least 3 updates, there are 2"
    ):
        make_plan(strategy, [Contribution(0, "a", 1), Contribution(1, "b", 1)], {}, Measured())
    with pytest.raises(
        StrategyInputError, match="k_of_n is 2, but sum with these parameters needs at least 3"
    ):
        strategy.check_size("k_of_n", 2)
    with pytest.raises(StrategyInputError, match=r'sum is for mode\.kind = "sync", as a device counts once'):
        strategy.check_mode("async")


def test_a_sum_beyond_the_models_dtype_names_the_tensor() -> None:
    with pytest.raises(TensorError, match="'x': the sum is too large for float16"):
        summed({"x": np.zeros(1, np.float16)}, [{"x": np.array([60_000.0])}] * 2)


def test_an_infinity_in_an_extreme_is_refused_by_name() -> None:
    with pytest.raises(UpdateError, match=r"'p-1'.*'low'.*NaN or an infinity"):
        summed({"low": np.zeros(1)}, [{"low": np.zeros(1)}, {"low": np.array([-np.inf])}], minimum="low")


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    size = 100_000
    base: Tensors = {"x": np.zeros(size), "n": np.zeros(size, np.int64)}

    def peak(count: int) -> int:
        contributions = [Contribution(slot, "", 1) for slot in range(count)]
        strategy = create_strategy("sum")
        part = PartAggregation(
            strategy, make_plan(strategy, contributions, {}, Measured()), contributions, [base]
        )
        tracemalloc.start()
        for number in range(count):
            part.add(number, {"x": np.ones(size), "n": np.ones(size, np.int64)})
        model, _state = part.finish()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert model["n"].tolist() == [count] * size
        return found

    assert peak(40) < peak(4) * 1.2


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        (
            "sum",
            {"cells": ["a.bins", "*.bin"]},
            r"strategy.cells: '\*.bin' matches no tensor of the model; there are a.bins, a.min$",
        ),
        ("sum", {"minimum": "a.mni"}, "strategy.minimum: 'a.mni' matches no tensor"),
        ("sum", {"maximum": ["b.*"]}, r"strategy.maximum: 'b.\*' matches no tensor"),
        ("fedavg", {"trained": ["lora_*"]}, r"strategy.trained: 'lora_\*' matches no tensor"),
        ("fedper", {"personal": ["a.*", "head"]}, "strategy.personal: 'head' matches no tensor"),
        ("bagging", {"free": ["trees"]}, "strategy.free: 'trees' matches no tensor"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(name: str, params: Any, text: str) -> None:
    with pytest.raises(StrategyInputError, match=text):
        create_strategy(name, params).check_names(["a.min", "a.bins"])


def test_patterns_that_match_something() -> None:
    names = [f"layer{number}.weight" for number in range(30)]
    create_strategy(
        "sum", {"minimum": ["layer1?.*"], "cells": ["*"], "trained": "layer3.weight"}
    ).check_names(names)
    with pytest.raises(StrategyInputError, match=r"there are layer0\.weight, .*layer26\.weight and 10 more$"):
        create_strategy("sum", {"cells": ["layer"]}).check_names(names)
