"""What an aggregation keeps: sums that do not grow with the number of updates, and blocks of rows beside them."""

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from propeller.fl.strategies import Contribution, Measured, PartAggregation, create_strategy, make_plan
from propeller.fl.strategies.sums import MAX_PENDING, ROW_BLOCK, SUM_BLOCK
from propeller.fl.tensors import Tensors

NUMBERS = 250_000


def peak_of(name: str, count: int, numbers: int, shared: bool) -> int:
    """The most bytes that one part takes beside its base model, and beside its updates where they are ``shared``."""
    base: Tensors = {"w": np.zeros(numbers, np.float32)}
    strategy = create_strategy(name)
    contributions = [Contribution(slot, f"p-{slot}", 1) for slot in range(count)]
    # Coefficients as of a strategy that chose among all: only sums and rows are looked at here.
    plan = make_plan(strategy, contributions, {}, Measured(np.ones(count), np.eye(count)))
    one = np.arange(numbers, dtype=np.float32)

    def updates() -> Iterator[Tensors]:
        for _ in range(count):
            yield {"w": one if shared else one.copy()}

    gc.collect()
    tracemalloc.start()
    try:
        part = PartAggregation(strategy, plan, contributions, [base])
        for number, update in enumerate(updates()):
            if part.counts(number):
                part.add(number, update)
        part.finish()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["fedmedian", "trimmed_mean", "bulyan"])
def test_order_statistics_of_50_updates_need_little_beside_them(name: str) -> None:
    """Blocks of all updates in float64, in order, and what is computed of them: as many as ten such matrices."""
    result = NUMBERS * 4
    assert peak_of(name, 50, NUMBERS, shared=True) <= result + 10 * 50 * ROW_BLOCK * 8
    assert peak_of(name, 50, 4 * NUMBERS, shared=True) <= 4 * result + 10 * 50 * ROW_BLOCK * 8


def test_a_mean_does_not_grow_with_the_number_of_updates() -> None:
    few = peak_of("fedavg", MAX_PENDING, NUMBERS, shared=False)
    many = peak_of("fedavg", 3 * MAX_PENDING, NUMBERS, shared=False)
    assert many <= few + NUMBERS * 4
    # The sums, the pending updates and one more, the block of them in float64, the result.
    assert few <= NUMBERS * (8 + 4 * (MAX_PENDING + 1) + 4) + 2 * MAX_PENDING * SUM_BLOCK * 8


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedmedian"])
def test_a_part_that_is_done_is_gone_without_a_collection_of_garbage(name: str) -> None:
    """Parts follow each other faster than Python collects: what is kept in a cycle adds up."""
    strategy = create_strategy(name)
    base: Tensors = {"w": np.zeros(10), "n": np.zeros(3, int), "m": np.zeros(2, bool)}
    contributions = [Contribution(0, "p", 1)]
    plan = make_plan(strategy, contributions, {}, Measured())
    part = PartAggregation(strategy, plan, contributions, [base])
    part.add(0, base | {f"@{kind}/w": np.zeros(10) for kind in strategy.extra_kinds})
    part.finish()
    gone = weakref.ref(part)
    gc.disable()
    try:
        del part
        assert gone() is None
    finally:
        gc.enable()
