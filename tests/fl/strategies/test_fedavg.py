"""FedAvg against exact arithmetic."""

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.strategies import Contribution, FedAvg, NoUpdatesError, UpdateError, aggregate
from propeller.fl.tensors import Tensors

numbers = st.floats(-1e30, 1e30, allow_nan=False)
samples = st.integers(1, 2**53 - 1)


def average(*updates: tuple[Tensors, int], base: Tensors | None = None) -> Tensors:
    received = [
        (Contribution(slot, f"p-{slot}", count), update) for slot, (update, count) in enumerate(updates)
    ]
    return aggregate(FedAvg(), base or updates[0][0], None, received)[0]


@given(st.lists(st.tuples(st.lists(numbers, min_size=3, max_size=3), samples), min_size=1, max_size=12))
def test_the_error_stays_within_the_stated_bound(updates: list[tuple[list[float], int]]) -> None:
    mean = average(*(({"w": np.array(values)}, count) for values, count in updates))["w"]
    total = sum(count for _values, count in updates)
    for place in range(3):
        exact = sum((Fraction(values[place]) * count for values, count in updates), Fraction(0)) / total
        weight = math.fsum(abs(values[place]) * (count / total) for values, count in updates)
        bound = (len(updates) + 2) * 2.0**-53 * weight * (1 + 1e-9) + 1e-300
        assert abs(Fraction(float(mean[place])) - exact) <= bound


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=numbers), samples)
def test_one_update_is_its_own_mean(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", count: int
) -> None:
    mean = average(({"w": values}, count))["w"]
    assert mean.shape == values.shape
    np.testing.assert_allclose(mean, values, rtol=2**-51, atol=2**-1070)


def test_weights_are_the_samples_and_scalars_stay_scalars() -> None:
    mean = average(
        ({"w": np.array([1.0, 2.0]), "b": np.array(0.0)}, 1),
        ({"b": np.array(4.0), "w": np.array([5.0, 10.0])}, 3),
    )
    assert mean["w"].tolist() == [4.0, 8.0]
    assert mean["b"].shape == ()
    assert mean["b"] == 3.0
    assert list(mean) == ["w", "b"]


def test_sums_are_not_in_the_dtype_of_the_model() -> None:
    updates = [({"w": np.full(3, 1e8, np.float32)}, 1)] + [({"w": np.full(3, 1.0, np.float32)}, 1)] * 3
    mean = average(*updates)["w"]
    assert mean.dtype == np.float32
    assert mean.tolist() == [float(np.float32((1e8 + 3) / 4))] * 3


def test_large_tensors_are_summed_in_all_their_parts() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 70_001)).astype(np.float32) for _ in range(3)]
    mean = average(*(({"w": array}, count) for array, count in zip(arrays, (1, 2, 3), strict=True)))["w"]
    exact = np.zeros((3, 70_001))
    for count, array in enumerate(arrays, 1):
        exact += array.astype(np.float64) * count
    np.testing.assert_array_equal(mean, (exact / 6).astype(np.float32))


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"w": np.zeros(2)}, "'b'"),
        ({"w": np.zeros(2), "b": np.zeros(()), "c": np.zeros(1)}, "'c'"),
        ({"w": np.zeros(3), "b": np.zeros(())}, r"'w'.*\[3\].*\[2\]"),
        ({"w": np.array([1.0, np.nan]), "b": np.zeros(())}, "'w'.*NaN"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(second: Tensors, named: str) -> None:
    with pytest.raises(UpdateError, match="update of 'p-1'.*" + named) as caught:
        average(({"w": np.ones(2), "b": np.array(1.0)}, 2), (second, 1))
    assert caught.value.number == 1


def test_weights_do_not_overflow() -> None:
    assert average(({"w": np.array([1e308])}, 2**53 - 1), ({"w": np.array([1e308])}, 1))["w"].tolist() == [
        1e308
    ]


def test_nothing_has_no_mean() -> None:
    with pytest.raises(NoUpdatesError, match="no updates"):
        aggregate(FedAvg(), {"w": np.ones(1)}, None, [])


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(2**-10, 2**10, width=32), min_size=5, max_size=5), st.integers(1, 10_000)
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_sums_of_float32_are_exact_so_that_order_and_scale_do_not_change_a_bit(
    updates: list[tuple[list[float], int]], random: Random
) -> None:
    """Numbers between 2**-10 and 2**10 times samples up to 10,000 need less than float64's 53 bits."""
    received = [({"w": np.array(values, np.float32)}, count) for values, count in updates]
    mean = average(*received)["w"]
    shuffled = list(received)
    random.shuffle(shuffled)
    assert average(*shuffled)["w"].tolist() == mean.tolist()
    assert average(*((update, 3 * count) for update, count in received))["w"].tolist() == mean.tolist()
    total = sum(count for _update, count in received)
    for place in range(5):
        exact = (
            sum((Fraction(float(update["w"][place])) * count for update, count in received), Fraction(0))
            / total
        )
        assert mean[place] == np.float32(float(exact))
