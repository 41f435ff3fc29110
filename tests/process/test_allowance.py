"""Amounts that are spent and come back."""

from hypothesis import given
from hypothesis import strategies as st

from propeller.process.allowance import Allowance

AMOUNTS = st.floats(0.0, 50.0)


@given(st.lists(st.tuples(AMOUNTS, st.floats(0.0, 100.0)), max_size=30))
def test_no_more_is_allowed_than_a_burst_what_came_back_and_one_debt(
    steps: list[tuple[float, float]],
) -> None:
    allowance, spent, now, largest = Allowance.full(2.0, 10.0, 0.0), 0.0, 0.0, 0.0
    for amount, passed in steps:
        now += passed
        if allowance.take(amount, now):
            spent += amount
            largest = max(largest, amount)
        assert spent <= 10.0 + 2.0 * now + largest + 1e-6
        assert allowance.left <= 10.0


def test_what_is_more_than_is_left_is_owed_and_a_clock_that_goes_back_gives_nothing() -> None:
    allowance = Allowance.full(1.0, 10.0, 100.0)
    assert allowance.take(15.0, 100.0)
    assert not allowance.take(1.0, 104.0)
    assert not allowance.take(1.0, 0.0)
    assert allowance.take(1.0, 2.0)


def test_what_was_done_already_is_spent_in_any_case() -> None:
    allowance = Allowance.full(1.0, 10.0, 0.0)
    assert allowance.charge(10.0, 0.0)
    assert not allowance.charge(5.0, 0.0)
    assert not allowance.charge(0.0, 4.0)
    assert allowance.charge(0.0, 5.0)
