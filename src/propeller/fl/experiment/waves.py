"""Asynchronous experiments: devices train in overlapping waves, and each so many updates make a version.

FedBuff (Nguyen et al. 2022, algorithm 1): up to ``concurrency`` devices train at once; an update waits in a buffer
until there are ``buffer`` of them, which are merged, each weighted by its staleness, into the next version. Devices
are replaced when a version is made, and not one by one as they finish: then they start from that version, and a
round of an experiment costs one choice. A device has at most one update in a merge.

A wave is a round that makes no version. Its updates come to it, from its own base model, for as long as it is open,
whatever else goes on; how it is now is told by ``WaveChanged``.
"""

from collections.abc import Iterable
from dataclasses import replace

from propeller.fl.experiment.events import Report, WaveChanged
from propeller.fl.experiment.requests import wave_id
from propeller.fl.experiment.state import BufferedUpdate, Experiment, Wave


def hear_of_wave(current: Experiment, event: WaveChanged) -> tuple[Experiment, list[Report]] | None:
    """The experiment once it has heard how a wave is; ``None`` if that is not new."""
    before = next((one for one in current.waves if wave_id(current.id, one.number) == event.round_id), None)
    if before is None:
        return None
    known, sent = frozenset(before.updates), frozenset(event.updates)
    new = tuple(name for name in event.updates if name not in known)
    after = replace(
        before,
        participants=before.participants if event.participants is None else event.participants,
        updates=before.updates + new,
        failed=tuple(name for name in event.failed if name not in sent),
    )
    if after == before and not event.is_over:
        return None
    heard = replace(current, waves=_replaced(current.waves, before, None if event.is_over else after))
    if len(heard.training) < len(current.training) or new:
        heard = replace(heard, is_starved=False)
    if after.failed != before.failed:
        fresh = tuple(name for name in after.failed if name not in heard.wave_failures)
        heard = replace(heard, wave_failures=heard.wave_failures + fresh)
    if new:
        heard = replace(heard, dry_waves=0, buffer=heard.buffer + _buffered(after, new))
    if event.is_over and not after.updates and not after.is_cancelled:
        heard = _count_dry(heard, after, event.reason)
    return drop_stale(heard)


def _count_dry(current: Experiment, wave: Wave, reason: str | None) -> Experiment:
    """The experiment after a wave without updates; that nobody was free while others trained is no failure."""
    if wave.participants or wave.min_chosen:
        return replace(current, dry_waves=current.dry_waves + 1, dry_reason=reason)
    return replace(current, is_starved=set(wave.busy) <= set(current.busy))


def drop_stale(current: Experiment) -> tuple[Experiment, list[Report]]:
    """The experiment without what is more than ``max_staleness`` versions old: waves are cancelled."""
    oldest = current.done - (current.spec.mode.max_staleness or 0)
    fine = tuple(one for one in current.buffer if one.base_done >= oldest)
    waves = tuple(
        one if one.is_cancelled or one.base_done >= oldest else replace(one, is_cancelled=True)
        for one in current.waves
    )
    reason = explain_staleness(current)
    reports = [
        Report(
            "failure",
            {"round_id": wave_id(current.id, one.wave), "proplet_id": one.proplet_id, "reason": reason},
        )
        for one in current.buffer
        if one.base_done < oldest
    ]
    return replace(current, buffer=fine, waves=waves), reports


def explain_staleness(current: Experiment) -> str:
    """Why updates of a wave are not wanted any more."""
    return f"stale: more than {current.spec.mode.max_staleness} versions were made since the base model"


def take_buffer(current: Experiment) -> Experiment | None:
    """The experiment with updates to merge, if there are enough of them, or no more can come."""
    size = current.spec.mode.buffer or 1
    if current.merging:
        return current
    if len(current.buffer) < size and not (current.buffer and is_exhausted(current)):
        return None
    return replace(current, merging=current.buffer[:size], buffer=current.buffer[size:])


def is_exhausted(current: Experiment) -> bool:
    """Whether no update can come any more, and no further wave would help."""
    return not current.waves and (current.is_starved or current.dry_waves > current.spec.retries)


def next_wave(current: Experiment) -> Wave | None:
    """The wave to start now, if any: after each version, and where those that train cannot fill the buffer."""
    mode, training, busy = current.spec.mode, current.training, current.busy
    if any(one.participants is None and not one.is_cancelled for one in current.waves):
        return None  # who is free is known once it has its participants
    if current.is_starved or current.dry_waves > current.spec.retries:
        return None
    if current.done + bool(current.merging) >= current.spec.rounds:
        return None
    missing = (mode.concurrency or 1) - len(training)
    cannot_fill = not current.merging and len(busy) < (mode.buffer or 1)
    if missing < 1 or not (cannot_fill or current.last_wave_done < current.done):
        return None
    return Wave(
        number=current.last_wave + 1,
        base_version=current.version,
        base_done=current.done,
        up_to=missing,
        min_chosen=0 if busy else 1,
        busy=busy,
        exclude=tuple(name for name in current.wave_failures if name not in busy),
    )


def _buffered(wave: Wave, names: Iterable[str]) -> tuple[BufferedUpdate, ...]:
    slots = {name: slot for slot, name in enumerate(wave.participants or ())}
    return tuple(
        BufferedUpdate(wave.number, slots[name], name, wave.base_version, wave.base_done) for name in names
    )


def _replaced(waves: tuple[Wave, ...], before: Wave, after: Wave | None) -> tuple[Wave, ...]:
    kept = (after if one is before else one for one in waves)
    return tuple(one for one in kept if one is not None)
