"""Clocks of the broker and of identity."""

import pytest

from propeller.identity.broker_api import parse_time, seconds_ahead


@pytest.mark.parametrize(("now", "ahead"), [(10.0, 0.0), (10.5, 0.0), (11.0, 0.0), (12.0, 1.0), (8.0, -2.0)])
def test_a_clock_is_ahead_by_what_the_time_between_cannot_explain(now: float, ahead: float) -> None:
    assert seconds_ahead(now, asked=10.0, answered=11.0) == ahead


def test_the_servers_times_have_nanoseconds() -> None:
    assert parse_time("2026-11-24T09:14:58.199054953Z") == pytest.approx(1795511698.199054, abs=1e-5)
