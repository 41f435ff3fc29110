"""What is told of a round of an experiment: to those who follow, beside what the experiment itself reports, and to the experiment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.round_notes import notes_of
from propeller.coordinator.rounds import RoundChange, RoundRecord, format_unix_time
from propeller.fl.experiment import RoundEnded, WaveChanged
from propeller.fl.round import RoundState


@dataclass(frozen=True)
class NewEvent:
    """Something that happened in an experiment, not stored yet; ``at`` in Unix seconds."""

    kind: str
    at: float
    data: Mapping[str, Any]


def events_of(change: RoundChange, at: float) -> Iterator[NewEvent]:
    """The events of a change: its participants are known, an update has come, participants have failed."""
    before, after, update = change.before, change.after, change.update
    plan = after.round.plan
    place = place_of(after)
    if before.state is RoundState.CREATED and after.state is RoundState.COLLECTING:
        known = {
            "base_version": plan.base_version,
            "participants": list(plan.participants),
            "k_of_n": plan.k_of_n,
            "deadline": format_unix_time(after.deadline),
            "names": dict(after.names),
        }
        yield NewEvent("round_started", at, {**place, **known})
    if update is not None:
        count = {"updates": len(after.updates), "k_of_n": plan.k_of_n}
        yield NewEvent("update", at, {**place, **after.update_json(update), **count})
    for name, reason in after.round.failures.items():
        if before.round.failures.get(name) != reason:
            yield NewEvent("failure", at, {**place, **after.device(name), "reason": reason})
    if after.state.is_over and not before.state.is_over:
        for note in notes_of(after):
            yield NewEvent("note", at, {**place, "reason": note})


def merge_started(record: RoundRecord, at: float) -> NewEvent:
    """The start of a round that merges updates: it has them already, and no deadline."""
    plan = record.round.plan
    known = {
        "base_version": plan.base_version,
        "participants": list(plan.participants),
        "k_of_n": plan.k_of_n,
        "names": dict(record.names),
    }
    return NewEvent("round_started", at, {**place_of(record), **known, "deadline": None})


def place_of(record: RoundRecord) -> dict[str, Any]:
    """Which round an event is about."""
    return {
        "round_id": record.round_id,
        "kind": "wave" if record.round.plan.is_wave else record.kind,
        **record.numbers,
    }


def outcome_of(record: RoundRecord) -> dict[str, Any]:
    """What is told of a round at its end, beside how it ended."""
    started, ended = record.started_at, record.ended_at
    return {
        "updates": len(record.updates),
        "failures": len(record.round.failures),
        "num_samples": sum(update.num_samples for update in record.updates.values()),
        "metrics": record.metrics if record.state is RoundState.COMPLETED else {},
        "seconds": None if started is None or ended is None else round(ended - started, 6),
    }


def wave_changed(record: RoundRecord, at: float) -> WaveChanged:
    """How a wave is, as its experiment is told."""
    current = record.round
    return WaveChanged(
        record.round_id,
        at,
        participants=current.plan.participants if record.started_at is not None else None,
        updates=tuple(current.accepted),
        failed=current.unheard if current.state.is_over else tuple(current.failures),
        is_over=current.state.is_over,
        reason=current.reason,
        program_error=current.program_error,
    )


def round_ended(experiment: ExperimentRecord, record: RoundRecord, at: float) -> RoundEnded:
    """How a round ended, as its experiment is told."""
    completed = record.state is RoundState.COMPLETED
    return RoundEnded(
        record.round_id,
        at,
        version=record.round.model_version,
        metrics=record.metrics if completed else {},
        reason=None if completed else record.round.reason or "failed",
        participants=record.round.plan.participants,
        # The coordinator is no device, which the next try could leave out.
        failed=() if experiment.is_central(record) else record.round.unheard,
        program_error=None if completed else record.round.program_error,
    )
