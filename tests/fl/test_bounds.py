"""What one device may count for: shares of samples, and the norm of a difference."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.bounds import OutOfBoundsError, check_norm, check_numbers, counted_samples
from propeller.protocol.bounds import UpdateBounds

SAMPLES = st.lists(st.integers(1, 2**53 - 1), min_size=1, max_size=30)
SHARES = st.sampled_from([0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 0.99, 1.0])


@pytest.mark.parametrize(
    ("samples", "share", "counted"),
    [
        ([100, 300], None, [100, 300]),
        ([100, 300], 0.75, [100, 300]),  # 300 is the share exactly
        ([100, 300], 0.7, [100, 233]),  # 0.7 · (100 + 233.3) = 233.3
        ([10, 10, 10**15], 0.5, [10, 10, 20]),
        ([60, 10, 100, 10], 0.4, [40, 10, 40, 10]),  # two are cut: c = 0.4 · (2 c + 20)
        ([5, 7], 0.2, [5, 5]),  # two updates cannot have a fifth each
    ],
)
def test_what_is_over_a_share_does_not_count(
    samples: list[int], share: float | None, counted: list[int]
) -> None:
    assert counted_samples(samples, share) == counted


@given(SAMPLES, SHARES)
def test_nobody_has_more_than_the_share_and_nobody_loses_more_than_needed(
    samples: list[int], max_share: float
) -> None:
    counted = counted_samples(samples, max_share)
    share, total = Fraction(str(max_share)), sum(counted)
    assert all(1 <= less <= count for less, count in zip(counted, samples, strict=True))
    ordered = sorted(zip(samples, counted, strict=True))
    assert all(first[1] <= second[1] for first, second in pairwise(ordered))
    cut = [less for less, count in zip(counted, samples, strict=True) if less < count]
    if share * len(samples) < 1:
        assert len(set(counted)) == 1
        return
    assert all(less <= share * total for less in counted)
    if cut:  # one sample more each would be too many
        more = max(counted) + 1
        assert more > share * (total + len(cut))
    if all(count <= share * sum(samples) for count in samples):
        assert counted == samples


def test_numbers_beyond_their_bounds_name_sender_number_bound_and_field() -> None:
    bounds = UpdateBounds(max_samples=500, max_steps=50, metric_ranges={"accuracy": [0.0, 1.0]})
    check_numbers(bounds, "p-1", 500, 50, {"accuracy": 1.0, "loss": 1e300})
    with pytest.raises(
        OutOfBoundsError, match=r"num_samples: p-1 says 501, more than the 500 of update.max_samples"
    ):
        check_numbers(bounds, "p-1", 501)
    with pytest.raises(OutOfBoundsError, match=r"steps: p-1 says 51, more than the 50 of update.max_steps"):
        check_numbers(bounds, "p-1", 1, 51)
    with pytest.raises(OutOfBoundsError, match=r"p-1 says that accuracy is 1.5, which is not from 0 to 1"):
        check_numbers(bounds, "p-1", 1, None, {"accuracy": 1.5})


def test_no_device_has_a_million_billion_samples_unless_it_is_said() -> None:
    with pytest.raises(OutOfBoundsError, match=r"1000000000 of update.max_samples"):
        check_numbers(UpdateBounds(), "p-1", 10**15)
    check_numbers(UpdateBounds(max_samples=2**53 - 1), "p-1", 10**15)


def test_a_norm_is_that_of_the_difference_without_integers() -> None:
    base = {"w": np.full(2, 100.0, np.float32), "n": np.array([7]), "s": np.array(1.0, np.float32)}
    weights = {"w": np.array([103.0, 104.0], np.float32), "n": np.array([10**9]), "s": base["s"]}
    delta = {"w": np.array([3.0, 4.0], np.float32), "n": np.array([10**9]), "s": np.array(0.0)}
    for kind, update in (("weights", weights), ("delta", delta)):
        check_norm(UpdateBounds(max_norm=5.0), "p-1", update, base, kind)  # type: ignore[arg-type]
        with pytest.raises(
            OutOfBoundsError, match=r"base model is 5 for p-1, more than the 4.9 of update.max_norm"
        ):
            check_norm(UpdateBounds(max_norm=4.9), "p-1", update, base, kind)  # type: ignore[arg-type]


def test_what_an_update_has_beside_the_model_is_held_to_the_same_norm() -> None:
    base = {"w": np.zeros(2, np.float32)}
    update = {"w": np.ones(2, np.float32), "@control/w": np.array([6.0, 8.0], np.float32)}
    check_norm(UpdateBounds(max_norm=10.0), "p-1", update, base)
    with pytest.raises(OutOfBoundsError, match=r"the norm of its tensors @control/… is 10 for p-1"):
        check_norm(UpdateBounds(max_norm=9.0), "p-1", update, base)


def test_what_leaves_float64_is_too_long() -> None:
    with pytest.raises(OutOfBoundsError, match=r"is inf for p-1"):
        check_norm(UpdateBounds(max_norm=1e300), "p-1", {"w": np.array([1e308])}, {"w": np.array([-1e308])})
