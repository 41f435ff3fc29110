"""An experiment at a moment: all that ``step`` decides from, and all that must survive a crash."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from propeller.protocol.experiments import ExperimentSpec, RoundKind


class ExperimentState(StrEnum):
    """Where an experiment is."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether it starts nothing any more."""
        return self in {ExperimentState.COMPLETED, ExperimentState.STOPPED, ExperimentState.FAILED}


@dataclass(frozen=True)
class OpenRound:
    """A round that was started and whose end is not known: kind, number from 1, attempt from 1."""

    kind: RoundKind
    number: int
    attempt: int


@dataclass(frozen=True)
class Best:
    """The version whose metric is the best so far."""

    version: int
    metric: str
    value: float


@dataclass(frozen=True)
class Experiment:
    """An experiment at a moment.

    Attributes:
        id: its id.
        spec: what was asked for.
        version: its newest model version; at first the one that it starts from.
        state: where it is.
        reason: why it ended, unless simply all rounds are done.
        done: how many rounds of training are completed.
        evaluated: the number of the last round whose version was evaluated.
        open: the round that was started. One that is over waits for the end of this round, and starts no other.
        failed_tries: how often the round that is next, or open, has failed already.
        exclude: who failed in those tries.
        last_rounds: who took part in which round last, as far as they still rest.
        best: the best version, if ``stop.metric`` says what is good.
        looks_since_best: how many metrics were looked at since then.
        running_since: when it was admitted or resumed, while it runs.
        spent_s: for how many seconds it ran before that.
    """

    id: str
    spec: ExperimentSpec
    version: int
    state: ExperimentState = ExperimentState.QUEUED
    reason: str | None = None
    done: int = 0
    evaluated: int = 0
    open: OpenRound | None = None
    failed_tries: int = 0
    exclude: tuple[str, ...] = ()
    last_rounds: Mapping[str, int] = field(default_factory=dict)
    best: Best | None = None
    looks_since_best: int = 0
    running_since: float | None = None
    spent_s: float = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether it is over and no event can change it any more."""
        return self.state.is_over and self.open is None

    @property
    def needs_place(self) -> bool:
        """Whether it counts among those that run at the same time."""
        return self.state is ExperimentState.RUNNING or self.open is not None

    @property
    def deadline(self) -> float | None:
        """When ``stop.max_time_s`` is over, if it goes on running; the time of pauses does not count."""
        most = self.spec.stop.max_time_s
        return (
            None if most is None or self.running_since is None else self.running_since + most - self.spent_s
        )

    def to_json(self) -> dict[str, Any]:
        """What changes, as JSON values: all but ``id`` and ``spec``."""
        changing = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name not in {"id", "spec"}
        }
        return {
            **changing,
            "state": self.state.value,
            "open": None if self.open is None else asdict(self.open),
            "exclude": list(self.exclude),
            "last_rounds": dict(self.last_rounds),
            "best": None if self.best is None else asdict(self.best),
        }

    @classmethod
    def from_json(cls, experiment_id: str, spec: ExperimentSpec, stored: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave, again; what an older version did not store has its default."""
        opened, best = stored.get("open"), stored.get("best")
        return cls(
            experiment_id,
            spec,
            **{
                **stored,
                "state": ExperimentState(stored["state"]),
                "open": None if opened is None else OpenRound(**opened),
                "exclude": tuple(stored.get("exclude", ())),
                "best": None if best is None else Best(**best),
            },
        )
