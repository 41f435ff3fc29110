"""Hyperparameters of one round: constants as they are, schedules by the round's number.

With t from 0 in round 1 to 1 in the round that the schedule ends at, a value goes from ``start`` a to ``end`` b:

    linear       a + t (b - a)
    cosine       b + (1 + cos(pi t)) / 2 * (a - b)       (Loshchilov and Hutter 2017, equation 5, without restarts)
    exponential  a (b / a)^t
    step         the value of the last round number in ``values`` that is reached

It is a in round 1 and b at the end and after it, exactly, and never outside of them.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, assert_never

from propeller.protocol.schedules import Schedule


def resolve_hyperparams(hyperparams: Mapping[str, Any], number: int, rounds: int) -> dict[str, Any]:
    """The hyperparameters of a round.

    Args:
        hyperparams: constants and schedules, by name.
        number: of the round, from 1.
        rounds: of the experiment: where a schedule ends that does not say so itself.
    """
    return {
        name: value_at(value, number, rounds) if isinstance(value, Schedule) else value
        for name, value in hyperparams.items()
    }


def value_at(schedule: Schedule, number: int, rounds: int) -> float:
    """The value in round ``number`` (from 1) of an experiment of ``rounds`` rounds."""
    if schedule.schedule == "step":
        values = schedule.values or {}
        return values[str(max(reached for reached in map(int, values) if reached <= number))]
    if schedule.start is None or schedule.end is None:
        raise AssertionError("a schedule that is not of steps has a start and an end")
    start, end, last = schedule.start, schedule.end, schedule.rounds or rounds
    if number <= 1:
        return start
    if number >= last:
        return end
    between = _between(schedule.schedule, start, end, (number - 1) / (last - 1))
    return min(max(between, min(start, end)), max(start, end))


def _between(form: Literal["linear", "cosine", "exponential"], start: float, end: float, t: float) -> float:
    # Weighted sums, not start + t * (end - start): the difference of two large numbers may be infinite.
    match form:
        case "linear":
            return (1 - t) * start + t * end
        case "cosine":
            weight = (1 + math.cos(math.pi * t)) / 2
            return weight * start + (1 - weight) * end
        case "exponential":
            size = math.exp((1 - t) * math.log(abs(start)) + t * math.log(abs(end)))
            return math.copysign(size, start)
        case _:
            assert_never(form)
