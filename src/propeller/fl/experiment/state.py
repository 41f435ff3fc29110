"""An experiment at a moment: all that ``step`` decides from, and all that must survive a crash."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.selection import RoundKind


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
class Wave:
    """Devices of an asynchronous experiment that started together, and of which some may still train.

    Attributes:
        number: from 1.
        base_version: the model version that they start from.
        base_done: how many rounds were done then.
        up_to: how many were asked for.
        min_chosen: how many there must be at least: 0 while others train, 1 otherwise.
        busy: who took part already when it started.
        exclude: who had failed.
        participants: who was chosen; ``None``: not known yet.
        updates: whose update was seen.
        failed: who failed.
        is_cancelled: whether its updates would be too old.
    """

    number: int
    base_version: int
    base_done: int
    up_to: int
    min_chosen: int
    busy: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    participants: tuple[str, ...] | None = None
    updates: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    is_cancelled: bool = False

    @cached_property
    def training(self) -> tuple[str, ...]:
        """Those of whom an update is expected."""
        gone = {*self.updates, *self.failed}
        return (
            () if self.is_cancelled else tuple(name for name in self.participants or () if name not in gone)
        )


@dataclass(frozen=True)
class BufferedUpdate:
    """An update of a wave that waits to be merged with others.

    Attributes:
        wave: the number of the wave.
        slot: of its sender in the wave.
        proplet_id: the sender.
        base_version: the model version that it starts from.
        base_done: how many rounds were done then: it is as many versions stale as were made since.
    """

    wave: int
    slot: int
    proplet_id: str
    base_version: int
    base_done: int


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
        best: the best version, if ``stop.metric`` says what is good, or evaluations have a loss or an accuracy.
        looks_since_best: how many metrics were looked at since then.
        running_since: when it was admitted or resumed, while it runs.
        spent_s: for how many seconds it ran before that.
        waves: asynchronous: those that may still give updates.
        last_wave: the number of the last one that was started.
        last_wave_done: how many rounds were done then.
        buffer: updates that wait to be merged, in the order in which they came.
        merging: the updates of the round that is open, or tried next.
        wave_failures: who failed in waves since the last version; apart from ``exclude``, which must not change while an
            evaluation is open.
        dry_waves: how many waves in a row ended without an update.
        dry_reason: why the last of them failed.
        is_starved: whether the last wave found nobody, and nobody has become free since.
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
    waves: tuple[Wave, ...] = ()
    last_wave: int = 0
    last_wave_done: int = -1
    buffer: tuple[BufferedUpdate, ...] = ()
    merging: tuple[BufferedUpdate, ...] = ()
    wave_failures: tuple[str, ...] = ()
    dry_waves: int = 0
    dry_reason: str | None = None
    is_starved: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether it is over and no event can change it any more."""
        return self.state.is_over and self.open is None and not self.waves

    @property
    def needs_place(self) -> bool:
        """Whether it counts among those that run at the same time."""
        return self.state is ExperimentState.RUNNING or self.open is not None or bool(self.waves)

    @cached_property
    def training(self) -> tuple[str, ...]:
        """Who trains in a wave."""
        return tuple(name for wave in self.waves for name in wave.training)

    @cached_property
    def busy(self) -> tuple[str, ...]:
        """Who trains, or has an update in the buffer."""
        return (*self.training, *(one.proplet_id for one in self.buffer))

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
            "wave_failures": list(self.wave_failures),
            "last_rounds": dict(self.last_rounds),
            "best": None if self.best is None else asdict(self.best),
            "waves": [_lists(asdict(wave)) for wave in self.waves],
            "buffer": [asdict(one) for one in self.buffer],
            "merging": [asdict(one) for one in self.merging],
        }

    @classmethod
    def from_json(cls, experiment_id: str, spec: ExperimentSpec, stored: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave, again; what an older version did not store has its default.

        Raises:
            ValueError, TypeError, KeyError: it is not of this version.
        """
        unknown = sorted(stored.keys() - {one.name for one in fields(cls)})
        if unknown:
            raise ValueError(f"unknown fields: {', '.join(unknown)}")
        opened, best = stored.get("open"), stored.get("best")
        return cls(
            experiment_id,
            spec,
            **{
                **stored,
                "state": ExperimentState(stored["state"]),
                "open": None if opened is None else OpenRound(**opened),
                "exclude": tuple(stored.get("exclude", ())),
                "wave_failures": tuple(stored.get("wave_failures", ())),
                "best": None if best is None else Best(**best),
                "waves": tuple(Wave(**_tuples(wave)) for wave in stored.get("waves", ())),
                "buffer": tuple(BufferedUpdate(**one) for one in stored.get("buffer", ())),
                "merging": tuple(BufferedUpdate(**one) for one in stored.get("merging", ())),
            },
        )


def _lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
