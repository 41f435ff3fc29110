"""Schedules: exact at their ends, never outside of them, and what the formulas give between."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.schedules import resolve_hyperparams, value_at
from propeller.protocol.schedules import Schedule

finite = st.floats(allow_nan=False, allow_infinity=False)


def ramp(form: str, start: float, end: float, **fields: Any) -> Schedule:
    return Schedule.decode({"schedule": form, "start": start, "end": end, **fields})


@pytest.mark.parametrize(
    ("form", "number", "value"),
    [
        ("linear", 2, 0.775),
        ("linear", 3, 0.55),
        ("cosine", 2, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 3, 0.55),
        ("exponential", 2, 10**-0.25),
        ("exponential", 3, 10**-0.5),
    ],
)
def test_values_between_the_ends(form: str, number: int, value: float) -> None:
    assert value_at(ramp(form, 1.0, 0.1), number, 5) == pytest.approx(value, rel=1e-15)


def test_a_schedule_may_end_before_the_experiment() -> None:
    short = ramp("linear", 1.0, 0.0, rounds=3)
    assert [value_at(short, number, 100) for number in range(1, 6)] == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_an_experiment_of_one_round_has_the_first_value() -> None:
    assert value_at(ramp("cosine", 0.3, 0.1), 1, 1) == 0.3


def test_steps_hold_until_the_next_and_keep_whole_numbers() -> None:
    steps = Schedule.decode({"schedule": "step", "values": {"1": 32, "10": 0.5, "3": 64}})
    values = [value_at(steps, number, 20) for number in (1, 2, 3, 9, 10, 11)]
    assert values == [32, 32, 64, 64, 0.5, 0.5]
    assert isinstance(values[0], int)


def test_only_schedules_are_resolved() -> None:
    constants = {"batch": 8, "name": "x", "layers": [1, 2], "nothing": None, "table": {"start": 1, "end": 2}}
    resolved = resolve_hyperparams({**constants, "lr": ramp("linear", 1.0, 0.0)}, 2, 3)
    assert resolved == {**constants, "lr": 0.5}


@given(
    form=st.sampled_from(["linear", "cosine"]),
    start=finite,
    end=finite,
    last=st.integers(2, 100_000),
    data=st.data(),
)
def test_ramps_are_exact_at_their_ends_and_stay_between(
    form: str, start: float, end: float, last: int, data: st.DataObject
) -> None:
    one = ramp(form, start, end, rounds=last)
    assert value_at(one, 1, 7) == start
    assert value_at(one, last, 7) == value_at(one, last + 1, 7) == end
    between = value_at(one, data.draw(st.integers(1, last)), 7)
    assert min(start, end) <= between <= max(start, end)


@given(
    start=st.floats(5e-324, 1.7e308),
    end=st.floats(5e-324, 1.7e308),
    sign=st.sampled_from([1, -1]),
    number=st.integers(1, 50),
)
def test_an_exponential_ramp_moves_one_way_over_any_range(
    start: float, end: float, sign: int, number: int
) -> None:
    one = ramp("exponential", sign * start, sign * end, rounds=50)
    now, later = value_at(one, number, 50), value_at(one, number + 1, 50)
    assert value_at(one, 1, 50) == sign * start
    assert value_at(one, 50, 50) == sign * end
    assert min(start, end) <= abs(now) <= max(start, end)
    assert (later - now) * sign * (1 if end >= start else -1) >= 0
