"""What the coordinator and the aggregator say to each other, beside tensors (docs/reference.md, aggregator).

A request is a sequence of safetensors documents: one without tensors, whose ``__metadata__`` has a ``plan``; then for each part of
the model the base models, the server state if there is one, and the updates, each with that part's tensors. The answer is a
sequence too: a document without tensors whose ``__metadata__`` has the ``result``; then for each part the model, and the
server state's tensors if the result says that there are any.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from propeller.protocol.updates import MAX_SAMPLES
from propeller.protocol.wire import MAX_INTEGER, Message

PLAN_FIELD, RESULT_FIELD = "plan", "result"
"""Names in ``__metadata__`` of the documents that a request and an answer begin with."""

MAX_CONTRIBUTIONS = 100_000
MAX_PARTS = 100_000


class _StrictMessage(Message):
    """Between these two services nothing is ignored: what one of them does not know would change the model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _check_strategy(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(value, dict) and type(value.get("name", value.get("program"))) is not str:
        raise ValueError('must have a name or a program, as {"name": "fedavg"}')
    if isinstance(value, dict) and "name" in value and "program" in value:
        raise ValueError("has a name and a program: leave one out")
    return value


StrategyField = Annotated[str | dict[str, Any], AfterValidator(_check_strategy)]


class PlannedContribution(_StrictMessage):
    """The header of an update in an aggregation.

    Attributes:
        proplet_id: its sender.
        slot: the sender's position among the round's participants; without it, the update's position in the plan.
        num_samples: its samples.
        steps: local optimizer steps, if the sender said how many.
        metrics: finite numbers by name.
        staleness: how many versions its base is behind.
        base: which of the base models it started from; 0 is the one that the result replaces.
        kind: whether its tensors are weights, or differences to that base model.
    """

    proplet_id: Annotated[str, Field(max_length=256)]
    slot: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = None
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    steps: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    staleness: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    base: Annotated[int, Field(ge=0)] = 0
    kind: Literal["weights", "delta"] = "weights"


class AggregationPlan(_StrictMessage):
    """What a request begins with.

    Attributes:
        strategy: a name, or an object of ``name`` or ``program`` and parameters.
        values: the server state's values; empty before the first round.
        contributions: in the order in which their documents follow.
        parts: into how many parts the model is cut.
        cut: the tensors of which parts have pieces, in order and as vectors; others are in one part as a whole.
        bases: how many base models there are; updates of asynchronous rounds start from different ones.
        state: whether each part has a document with the server state's tensors.
        round_id: for logs, and for a program that aggregates.
    """

    strategy: StrategyField
    values: dict[str, Any] = Field(default_factory=dict)
    contributions: Annotated[list[PlannedContribution], Field(max_length=MAX_CONTRIBUTIONS)]
    parts: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    cut: Annotated[list[str], Field(max_length=MAX_PARTS)] = Field(default_factory=list)
    bases: Annotated[int, Field(ge=1, le=MAX_CONTRIBUTIONS)] = 1
    state: bool = False
    round_id: Annotated[str, Field(max_length=256)] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for number, contribution in enumerate(self.contributions):
            if contribution.base >= self.bases:
                raise ValueError(
                    f"contributions.{number}.base: is {contribution.base}, there are {self.bases} bases, numbered from 0"
                )
        return self

    @property
    def documents_a_part(self) -> int:
        """How many documents each part has."""
        return self.bases + self.state + len(self.contributions)


class AggregationResult(_StrictMessage):
    """What an answer begins with.

    Attributes:
        values: the server state's values after this round.
        measured: what was measured of the updates, such as their ``norms``, by name.
        report: numbers about the round that a person would like to see, by name.
        parts: as many as the plan has.
        state: whether each part has a document with the server state's tensors.
        program: of a strategy that is a program, the reference with the digest that ran.
    """

    values: dict[str, Any] = Field(default_factory=dict)
    measured: dict[str, list[float]] = Field(default_factory=dict)
    report: dict[str, float] = Field(default_factory=dict)
    parts: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    state: bool = False
    program: str | None = None
