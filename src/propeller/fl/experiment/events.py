"""What happens to an experiment, and what is to be done about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from propeller.fl.experiment.requests import MergeRequest, RoundRequest
from propeller.fl.experiment.state import Experiment


@dataclass(frozen=True)
class Admitted:
    """A place among those that run is free."""

    at: float


@dataclass(frozen=True)
class RoundEnded:
    """A round is over, or an evaluation by the coordinator.

    Attributes:
        round_id: which.
        at: when.
        version: of the new model, after training.
        metrics: the weighted means.
        reason: why it failed; ``None``: it is completed.
        participants: who took part.
        failed: those of them whose update does not count, because they failed or were late.
        program_error: the error with which the program ended at all of them, if it is one and the same.
    """

    round_id: str
    at: float
    version: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    participants: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    program_error: str | None = None


@dataclass(frozen=True)
class RoundRefused:
    """A round or wave that was to be started cannot be created, now or later: what it needs is not there any more.

    Attributes:
        round_id: which.
        at: when.
        reason: what is missing, and what to do.
    """

    round_id: str
    at: float
    reason: str


@dataclass(frozen=True)
class CannotGoOn:
    """The experiment cannot be carried out any more, and fails.

    Attributes:
        at: when.
        reason: what is wrong with it.
    """

    at: float
    reason: str


@dataclass(frozen=True)
class WaveChanged:
    """How a wave of an asynchronous experiment is now; sent whenever it changes, and again after a crash.

    Attributes:
        round_id: of the wave.
        at: when.
        participants: who was chosen; ``None``: not known yet.
        updates: whose update counts, in the order in which they came.
        failed: of whom none is expected.
        is_over: whether the round is.
        reason: why the round failed, if it did.
        program_error: as of ``RoundEnded``.
    """

    round_id: str
    at: float
    participants: tuple[str, ...] | None = None
    updates: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    is_over: bool = False
    reason: str | None = None
    program_error: str | None = None


@dataclass(frozen=True)
class PauseRequested:
    """No other round is to be started for now; the open one goes on."""

    at: float


@dataclass(frozen=True)
class ResumeRequested:
    """A paused experiment is to go on: at once if a round of it is open, else as soon as it is admitted again."""

    at: float


@dataclass(frozen=True)
class StopRequested:
    """The experiment is to end; its open round is cancelled."""

    at: float
    reason: str = "stopped by request"


@dataclass(frozen=True)
class TimePassed:
    """It is ``at``: the time that the experiment may take may be over."""

    at: float


Event = (
    Admitted
    | RoundEnded
    | RoundRefused
    | CannotGoOn
    | WaveChanged
    | PauseRequested
    | ResumeRequested
    | StopRequested
    | TimePassed
)
Request = PauseRequested | ResumeRequested | StopRequested


@dataclass(frozen=True)
class Persist:
    """Make the new experiment durable, with the reports that follow, before going on."""


@dataclass(frozen=True)
class Report:
    """Tell whoever follows the experiment: ``state``, ``round_started``, ``round_ended``, ``metrics`` or ``best``."""

    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class StartRound:
    """Start a round, unless there is one of its id; then report its end with ``RoundEnded``, whenever that was.

    Of a wave, report with ``WaveChanged`` how it is, at once if it is there already.
    """

    request: RoundRequest


@dataclass(frozen=True)
class MergeUpdates:
    """Make a round of updates that waves gave, unless there is one of its id, and report its end likewise."""

    request: MergeRequest


@dataclass(frozen=True)
class EvaluateCentrally:
    """Evaluate a version on the data set ``spec.evaluate.dataset``; then report ``RoundEnded``."""

    request: RoundRequest


@dataclass(frozen=True)
class CancelRound:
    """End a round, or an evaluation by the coordinator, and report that, also if it had ended already."""

    round_id: str
    reason: str


@dataclass(frozen=True)
class MarkLatest:
    """Let the alias ``ID/latest`` point to this version."""

    version: int


@dataclass(frozen=True)
class MarkBest:
    """Let the alias ``ID/best`` point to this version."""

    version: int
    metric: str
    value: float


Effect = (
    Persist | Report | StartRound | MergeUpdates | EvaluateCentrally | CancelRound | MarkLatest | MarkBest
)


@dataclass(frozen=True)
class Transition:
    """What an event led to: the experiment after it, and what to do, in order."""

    experiment: Experiment
    effects: tuple[Effect, ...] = ()
