"""A step of an experiment: what an event leads to, so that it can be stored as a whole and then be carried out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from propeller.coordinator.active_experiments import ActiveExperiment
from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.experiment_rounds import RoundMaker
from propeller.coordinator.experiment_store import write
from propeller.coordinator.round_events import NewEvent, merge_started, place_of
from propeller.coordinator.rounds import RoundRecord
from propeller.coordinator.store import insert_round
from propeller.errors import ConflictError, InvalidError, NotFoundError
from propeller.fl.experiment import (
    CancelRound,
    EvaluateCentrally,
    Event,
    MarkBest,
    MarkLatest,
    MergeUpdates,
    Persist,
    Report,
    RoundRefused,
    StartRound,
    step,
)
from propeller.store.database import DatabaseConnection


@dataclass
class Step:
    """What an event led to: to be stored, and then carried out.

    Attributes:
        active: the experiment, whose lock is held.
        before: the experiment as it is stored.
        after: as it will be.
        events: what is told of it.
        started: rounds that are stored with it.
        pauses: how long some of them wait before they begin, in seconds, by their ids.
        cancelled: rounds that are of no use any more.
        marks: aliases to move.
        changed: the round whose change led to it, as it will be stored.
    """

    active: ActiveExperiment
    before: ExperimentRecord
    after: ExperimentRecord
    events: list[NewEvent] = field(default_factory=list)
    started: list[RoundRecord] = field(default_factory=list)
    pauses: dict[str, float] = field(default_factory=dict)
    cancelled: list[CancelRound] = field(default_factory=list)
    marks: list[MarkLatest | MarkBest] = field(default_factory=list)
    changed: RoundRecord | None = None

    @classmethod
    def begin(cls, active: ActiveExperiment) -> "Step":
        """A step that changes nothing yet."""
        return cls(active, active.record, active.record)

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to store."""
        return bool(self.events or self.started) or self.after != self.before

    @property
    def ends(self) -> bool:
        """Whether the experiment is over with it."""
        return self.after.state.is_over and not self.before.state.is_over

    @property
    def settles(self) -> bool:
        """Whether the experiment is over with it and nothing of it is open."""
        return self.after.experiment.is_settled and not self.before.experiment.is_settled

    async def write(self, connection: DatabaseConnection) -> None:
        """Store it as part of a transaction.

        Raises:
            StoreConflictError: the experiment is not as this process left it.
        """
        await write(connection, self.before, self.after, self.events)
        for record in self.started:
            await insert_round(connection, record)


async def extend(
    found: Step,
    event: Event,
    now: float,
    maker: RoundMaker,
    outcome: Mapping[str, Any] | None = None,
) -> None:
    """Add to a step what an event leads to.

    Args:
        found: the step.
        event: what happened.
        now: in Unix seconds.
        maker: makes the rounds that it starts.
        outcome: what is told of the round that it ends.

    Raises:
        NotToldError: the model registry must be asked before.
    """
    transition = step(found.after.experiment, event)
    found.after = found.after.advance(transition.experiment, now)
    for effect in transition.effects:
        match effect:
            case Report("round_started", _):
                pass  # told once it is known who takes part
            case Report(kind, data):
                more = outcome if outcome and kind in {"round_ended", "metrics"} else {}
                found.events.append(NewEvent(kind, now, {**data, **more}))
            case StartRound() | EvaluateCentrally() | MergeUpdates():
                try:
                    await _add_round(found, effect, now, maker)
                except (InvalidError, NotFoundError, ConflictError) as error:  # what time does not heal
                    refused = RoundRefused(effect.request.round_id, now, str(error))
                    await extend(found, refused, now, maker)
            case CancelRound():
                found.cancelled.append(effect)
            case MarkLatest() | MarkBest():
                found.marks.append(effect)
            case Persist():
                pass  # all of this is stored before anything is carried out


async def _add_round(
    found: Step, effect: StartRound | EvaluateCentrally | MergeUpdates, now: float, maker: RoundMaker
) -> None:
    if isinstance(effect, MergeUpdates):
        merge = await maker.make_merge(found.active, found.after, effect.request, now, changed=found.changed)
        found.started.append(merge)
        found.events.append(merge_started(merge, now))
        return
    record = await maker.make(found.active, found.after, effect.request, now)
    found.started.append(record)
    after = found.after.experiment
    pause_s = found.active.pause_before(
        after.dry_waves if effect.request.is_wave else after.failed_tries, now
    )
    if pause_s:
        found.pauses[record.round_id] = pause_s
        reason = f"{pause_s:.1f} s until it is tried again"
        found.events.append(NewEvent("waiting", now, {**place_of(record), "reason": reason}))
