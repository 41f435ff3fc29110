"""What the manager is told of a round whose participants it chooses."""

from typing import Annotated, Literal

from pydantic import Field

from propeller.protocol.ids import Id
from propeller.protocol.wire import MAX_INTEGER, Message

RoundKind = Literal["train", "evaluate"]
"""What participants do in a round: train, which gives a model version, or evaluate, which gives metrics alone."""

Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class SelectionPolicy(Message):
    """How the manager chooses the participants of one round: ``selection`` in the message that starts it.

    Attributes:
        up_to: this many of those that are there, or all where they are fewer.
        min_chosen: fewer participants than this could not close the round.
        busy: ids of devices that are not chosen, as they take part in another round of the experiment.
        exclude: ids of devices that are chosen only where there are too few others: they have just failed.
        last_rounds: id → number of the last round in which it took part, of those that still rest.
        device_state: only devices on which programs can keep something from round to round.
    """

    fraction: Fraction | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    up_to: Annotated[int, Field(ge=1)] | None = None
    over_select: Annotated[float, Field(ge=0)] = 0.0
    tags: list[str] = Field(default_factory=list)
    names: list[str] | None = None
    min_available: Annotated[int, Field(ge=1)] | None = None
    min_chosen: Annotated[int, Field(ge=0)] = 1
    seed: Seed = 0
    cooldown_rounds: Annotated[int, Field(ge=0)] = 0
    busy: list[Id] = Field(default_factory=list)
    exclude: list[Id] = Field(default_factory=list)
    last_rounds: dict[Id, int] = Field(default_factory=dict)
    device_state: bool = False
