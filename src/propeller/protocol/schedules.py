"""Hyperparameters as a person gives them: constants, and schedules, which change them from round to round."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from propeller.protocol.rounds import MAX_ROUNDS
from propeller.protocol.strict import NestedProblemsError, StrictMessage, find_problems, require_json

Number = Annotated[float, Field(allow_inf_nan=False)]


def _check_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


class Schedule(StrictMessage):
    """A hyperparameter that changes from round to round.

    Attributes:
        schedule: the form: from ``start`` to ``end`` along a line, half a cosine or a constant factor; or steps.
        start, end: the values in the first round and in round ``rounds``, and after it.
        rounds: when the end is reached. Default: in the experiment's last round.
        values: for ``step``: round number → the value from that round on; one is for round 1.
    """

    schedule: Literal["linear", "cosine", "exponential", "step"]
    start: Number | None = None
    end: Number | None = None
    rounds: Annotated[int, Field(ge=2, le=MAX_ROUNDS)] | None = None
    values: dict[str, Annotated[int | float, BeforeValidator(_check_number)]] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.schedule == "step":
            self._check_steps()
            return self
        if self.values is not None:
            raise ValueError(f'values is only for schedule = "step": {self.schedule} has start and end')
        if self.start is None or self.end is None:
            raise ValueError(f"{self.schedule} needs start and end")
        if self.schedule == "exponential" and not (
            min(self.start, self.end) > 0 or max(self.start, self.end) < 0
        ):
            raise ValueError("exponential needs a start and an end above 0, or both below 0; use linear")
        return self

    def _check_steps(self) -> None:
        if any(field is not None for field in (self.start, self.end, self.rounds)):
            raise ValueError(
                'step has values alone, as {"1": 0.1, "10": 0.01}: leave out start, end and rounds'
            )
        if not self.values or "1" not in self.values:
            raise ValueError('values must have the value of round "1", as {"1": 0.1, "10": 0.01}')
        for number in self.values:
            if re.fullmatch("[1-9][0-9]{0,5}", number) is None or int(number) > MAX_ROUNDS:
                raise ValueError(f"values: {number[:80]!r} is no round: use numbers from 1 to {MAX_ROUNDS}")


def _read_hyperparameter(value: Any) -> Any:
    """A schedule where there is one, any other value as it is."""
    if not isinstance(value, dict) or "schedule" not in value:
        return value
    try:
        return Schedule.model_validate(value)
    except ValidationError as error:
        raise NestedProblemsError(find_problems(Schedule, error)) from None


def _constant_or_schedule(value: Any) -> Any:
    return value if isinstance(value, Schedule) else require_json(value)


Hyperparameter = Annotated[
    Any,
    BeforeValidator(_read_hyperparameter),
    AfterValidator(_constant_or_schedule),
    WithJsonSchema({"anyOf": [Schedule.model_json_schema(), {"description": "any JSON value"}]}),
]
"""A constant, which is any JSON value, or a ``Schedule``."""
