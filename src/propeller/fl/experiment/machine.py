"""What is next in an experiment: a round of training, an evaluation, or the end."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import assert_never

from propeller.fl.experiment.events import (
    Admitted,
    CancelRound,
    CannotGoOn,
    Effect,
    EvaluateCentrally,
    Event,
    MarkBest,
    MarkLatest,
    MergeUpdates,
    PauseRequested,
    Persist,
    Report,
    Request,
    ResumeRequested,
    RoundEnded,
    RoundRefused,
    StartRound,
    StopRequested,
    TimePassed,
    Transition,
    WaveChanged,
)
from propeller.fl.experiment.requests import (
    make_merge_request,
    make_request,
    make_wave_request,
    round_id,
    wave_id,
)
from propeller.fl.experiment.state import Best, Experiment, ExperimentState, OpenRound, Wave
from propeller.fl.experiment.waves import (
    drop_stale,
    explain_staleness,
    hear_of_wave,
    is_exhausted,
    next_wave,
    take_buffer,
)
from propeller.functions import is_missing_function
from propeller.protocol.goals import MARKED_METRICS, goal_of
from propeller.protocol.strict import nearest_names

_NOUNS = {"train": "round", "evaluate": "the evaluation after round"}

_ALIKE = "and is not tried again, as the program itself fails alike on every device"


def step(current: Experiment, event: Event) -> Transition:
    """The experiment after ``event``, and what to do about it."""
    match event:
        case Admitted():
            return _admit(current, event)
        case RoundEnded():
            return _end_round(current, event)
        case RoundRefused() | CannotGoOn():
            return _give_up(current, event)
        case WaveChanged():
            return _hear_of_wave(current, event)
        case PauseRequested() | ResumeRequested() | StopRequested():
            return Transition(current) if refusal(current, event) else _request(current, event)
        case TimePassed():
            return _pass_time(current, event)
        case _:
            assert_never(event)


def refusal(current: Experiment, request: Request) -> str | None:
    """Why a request cannot be fulfilled; ``None`` if it can, or is already."""
    match request:
        case PauseRequested():
            verb = "paused"
        case ResumeRequested():
            verb = "resumed"
        case StopRequested():
            verb = "stopped"
        case _:
            assert_never(request)
    is_stopped_twice = isinstance(request, StopRequested) and current.state is ExperimentState.STOPPED
    if not current.state.is_over or is_stopped_twice:
        return None
    return f"experiment {current.id} cannot be {verb}: it is {current.state}"


def resume(current: Experiment) -> tuple[Effect, ...]:
    """What may not have been done about an experiment that was read back after a crash; doing it again is harmless."""
    effects: list[Effect] = []
    if current.state.is_over:
        effects += _cancels(current)
    else:
        effects += [] if current.open is None else [_start(current, current.open)]
        effects += [
            _cancel_wave(current, one) if one.is_cancelled else StartRound(make_wave_request(current, one))
            for one in current.waves
        ]
    if current.done:
        effects.append(MarkLatest(current.version))
    if current.best is not None:
        effects.append(MarkBest(**asdict(current.best)))
    return tuple(effects)


def _admit(current: Experiment, event: Admitted) -> Transition:
    if current.state is not ExperimentState.QUEUED:
        return Transition(current)
    running = replace(current, state=ExperimentState.RUNNING, running_since=event.at)
    return _go_on(running, event.at, [_report_state(running)])


def _request(current: Experiment, event: Request) -> Transition:
    match event:
        case PauseRequested() if current.state in {ExperimentState.QUEUED, ExperimentState.RUNNING}:
            paused = replace(_stop_watch(current, event.at), state=ExperimentState.PAUSED)
            return Transition(paused, (Persist(), _report_state(paused)))
        case ResumeRequested() if current.state is ExperimentState.PAUSED and not current.needs_place:
            queued = replace(current, state=ExperimentState.QUEUED)
            return Transition(queued, (Persist(), _report_state(queued)))
        case ResumeRequested() if current.state is ExperimentState.PAUSED:
            running = replace(current, state=ExperimentState.RUNNING, running_since=event.at)
            return _go_on(running, event.at, [_report_state(running)])
        case StopRequested() if not current.state.is_over:
            return _finish(current, event.at, ExperimentState.STOPPED, event.reason)
        case _:
            return Transition(current)


def _pass_time(current: Experiment, event: TimePassed) -> Transition:
    if current.deadline is None or event.at < current.deadline:
        return Transition(current)
    return _finish(current, event.at, ExperimentState.COMPLETED, _time_is_over(current))


def _end_round(current: Experiment, event: RoundEnded) -> Transition:
    opened = current.open
    if opened is None or event.round_id != round_id(current.id, opened):
        return Transition(current)
    notes: list[Effect] = [_report_end(opened, event)]
    if event.reason is not None:
        return _retry(replace(current, open=None), opened, event, notes)
    after = replace(_record(current, opened, event), open=None)
    if opened.kind == "train":
        after, reports = drop_stale(after)
        notes += [MarkLatest(after.version), *reports, *_cancels_of_stale(current, after)]
    if event.metrics:
        where = {"number": opened.number, "round_id": event.round_id, "kind": opened.kind}
        notes.append(Report("metrics", {**where, "metrics": dict(event.metrics)}))
    looked = opened.kind == ("train" if after.spec.evaluate is None else "evaluate")
    metric = _looked_at(after, event.metrics)
    if not looked or metric is None:
        return _go_on(after, event.at, notes)
    value = event.metrics.get(metric)
    if value is None and after.best is None and not after.state.is_over:
        reason = _explain_missing(metric, opened, event.metrics)
        return _finish(after, event.at, ExperimentState.FAILED, reason, notes)
    after = _look(after, metric, value)
    if after.best is not current.best and after.best is not None:
        notes += [Report("best", asdict(after.best)), MarkBest(**asdict(after.best))]
    reason_to_end = None if after.state.is_over else _reason_to_end(after, value)
    if reason_to_end is not None:
        return _finish(after, event.at, ExperimentState.COMPLETED, reason_to_end, notes)
    return _go_on(after, event.at, notes)


def _give_up(current: Experiment, event: RoundRefused | CannotGoOn) -> Transition:
    """Fail for what no further try can change; a round that could not be created is not open."""
    if current.state.is_over:
        return Transition(current)
    if isinstance(event, CannotGoOn):
        return _finish(current, event.at, ExperimentState.FAILED, event.reason)
    waves = tuple(one for one in current.waves if wave_id(current.id, one.number) != event.round_id)
    is_open = current.open is not None and round_id(current.id, current.open) == event.round_id
    closed = replace(current, waves=waves, open=None if is_open else current.open)
    if closed == current:
        return Transition(current)
    reason = f"round {event.round_id} cannot be started: {event.reason}"
    return _finish(closed, event.at, ExperimentState.FAILED, reason)


def _record(current: Experiment, opened: OpenRound, event: RoundEnded) -> Experiment:
    """The experiment with what a completed round gave."""
    after = replace(current, failed_tries=0, exclude=())
    if opened.kind == "evaluate":
        return replace(after, evaluated=opened.number)
    if event.version is None:
        raise AssertionError(f"round {event.round_id} of training is completed and has no version")
    rest = current.spec.selection.cooldown_rounds
    took_part = {**current.last_rounds, **dict.fromkeys(event.participants, opened.number)} if rest else {}
    resting = {name: number for name, number in took_part.items() if opened.number + 1 - number <= rest}
    return replace(
        after,
        done=opened.number,
        version=event.version,
        last_rounds=resting,
        merging=(),
        wave_failures=(),
        dry_waves=0,
        is_starved=False,
    )


def _hear_of_wave(current: Experiment, event: WaveChanged) -> Transition:
    heard = hear_of_wave(current, event)
    if heard is None:
        return Transition(current)
    after, reports = heard
    notes: list[Effect] = [*reports, *_cancels_of_stale(current, after)]
    if event.is_over:
        [wave] = (one for one in current.waves if wave_id(current.id, one.number) == event.round_id)
        state = "completed" if event.reason is None else "failed"
        notes.append(Report("round_ended", {**_wave(current, wave), "state": state, "reason": event.reason}))
        if _is_mistake_of_first_wave(after, event):
            reason = f"wave {wave.number} failed, {_ALIKE}: {event.program_error}"
            return _finish(after, event.at, ExperimentState.FAILED, reason, notes)
    return _go_on(after, event.at, notes)


def _is_mistake_of_first_wave(after: Experiment, event: WaveChanged) -> bool:
    """As ``_is_mistake``, of a wave: nothing has come of any, and nobody trains who could show that the program works."""
    has_worked = after.done > 0 or after.buffer or after.merging or any(one.updates for one in after.waves)
    is_running = not after.state.is_over and not after.training
    return event.program_error is not None and is_running and not has_worked and len(event.failed) > 1


def _retry(closed: Experiment, opened: OpenRound, event: RoundEnded, notes: list[Effect]) -> Transition:
    tries = closed.failed_tries + 1
    exclude = closed.exclude + tuple(name for name in event.failed if name not in closed.exclude)
    after = replace(closed, failed_tries=tries, exclude=exclude)
    # What a program lacks it lacks in every try, and on every device.
    is_hopeless = opened.kind == "evaluate" and is_missing_function(event.reason or "", "evaluate")
    is_mistake = _is_mistake(closed, opened, event)
    if after.state.is_over or (tries <= closed.spec.retries and not is_hopeless and not is_mistake):
        return _go_on(after, event.at, notes)
    what = f"{_NOUNS[opened.kind]} {opened.number}"
    often = f" {tries} times, the last time" if tries > 1 else ""
    reason = f"{what} failed{often}: {event.reason}"
    if is_mistake and tries <= closed.spec.retries:
        times = f" {tries} times" if tries > 1 else ""
        reason = f"{what} failed{times}, {_ALIKE}: {event.program_error}"
    return _finish(after, event.at, ExperimentState.FAILED, reason, notes)


def _is_mistake(before: Experiment, opened: OpenRound, event: RoundEnded) -> bool:
    """Whether all participants failed by an error of the program that no other choice of devices is likely to change.

    One device may have other data than the rest of the fleet, and so may all that were chosen, where the program has worked on
    others: then those who have not failed yet are tried. ``event.failed`` is empty for an evaluation by the coordinator.
    """
    if event.program_error is None:
        return False
    has_worked = (before.done if opened.kind == "train" else before.evaluated) > 0
    is_by_itself = len(event.failed) == 1
    return set(event.failed) <= set(before.exclude) or not (has_worked or is_by_itself)


def _looked_at(current: Experiment, metrics: Mapping[str, float]) -> str | None:
    """By which metric the best version is marked, if by any: what is asked for, else the first of ``MARKED_METRICS`` for good.

    Only of evaluations: what devices report of their training is of their models, not of the version that comes of them.
    """
    if current.spec.stop.metric is not None:
        return current.spec.stop.metric
    if current.spec.evaluate is None:
        return None
    if current.best is not None:
        return current.best.metric
    return next((name for name in MARKED_METRICS if name in metrics), None)


def _look(current: Experiment, metric: str, value: float | None) -> Experiment:
    """The experiment once a metric was looked at; a round whose participants did not report it is not better."""
    best = current.best
    sign = -1 if (current.spec.stop.goal or goal_of(metric)) == "min" else 1
    if value is not None and (best is None or sign * value > sign * best.value):
        return replace(current, best=Best(current.version, metric, value), looks_since_best=0)
    return replace(current, looks_since_best=current.looks_since_best + 1)


def _reason_to_end(current: Experiment, value: float | None) -> str | None:
    rule, best = current.spec.stop, current.best
    if rule.target is not None and value is not None:
        reached = value <= rule.target if rule.goal == "min" else value >= rule.target
        if reached:
            return f"{rule.metric} is {value:g}: the target {rule.target:g} is reached"
    if rule.patience is not None and best is not None and current.looks_since_best >= rule.patience:
        times = "once" if rule.patience == 1 else f"{rule.patience} times in a row"
        return f"{rule.metric} was {times} no better than the {best.value:g} of version {best.version}"
    return None


def _explain_missing(metric: str, opened: OpenRound, metrics: Mapping[str, float]) -> str:
    near = nearest_names(metric, metrics)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    there = f"there are {', '.join(sorted(metrics)[:20])}" if metrics else "there are none"
    what = f"{_NOUNS[opened.kind]} {opened.number}"
    return f"stop.metric: {metric!r} is not among the metrics of {what}, {there}{hint}"


def _go_on(current: Experiment, at: float, notes: list[Effect]) -> Transition:
    """Start what is next, if anything is and may be."""
    if current.state is ExperimentState.RUNNING and current.deadline is not None and at >= current.deadline:
        return _finish(current, at, ExperimentState.COMPLETED, _time_is_over(current), notes)
    if not current.state.is_over and current.open is None and _next_round(current) is None:
        return _finish(current, at, ExperimentState.COMPLETED, None, notes)
    if current.state is not ExperimentState.RUNNING:
        return Transition(current, _effects(notes))
    after, starts = _open_next(current, notes)
    if after.spec.mode.kind == "async":
        if after.open is None and is_exhausted(after):
            reason = f"no update came of {after.dry_waves} waves in a row: {after.dry_reason}"
            return _finish(after, at, ExperimentState.FAILED, reason, notes)
        after = _start_wave(after, notes, starts)
    return Transition(after, _effects(notes, *starts))


def _open_next(current: Experiment, notes: list[Effect]) -> tuple[Experiment, list[Effect]]:
    """The experiment with its next round open, if none is and one may be."""
    opened = None if current.open is not None else _next_round(current)
    if opened is not None and opened.kind == "train" and current.spec.mode.kind == "async":
        taken = take_buffer(current)
        current, opened = (current, None) if taken is None else (taken, opened)
    if opened is None:
        return current, []
    after = replace(current, open=opened)
    notes.append(_report_start(after, opened))
    return after, [_start(after, opened)]


def _start_wave(current: Experiment, notes: list[Effect], starts: list[Effect]) -> Experiment:
    wave = next_wave(current)
    if wave is None:
        return current
    notes.append(Report("round_started", {**_wave(current, wave), "base_version": wave.base_version}))
    starts.append(StartRound(make_wave_request(current, wave)))
    return replace(
        current, waves=(*current.waves, wave), last_wave=wave.number, last_wave_done=wave.base_done
    )


def _next_round(current: Experiment) -> OpenRound | None:
    attempt, done, plan = current.failed_tries + 1, current.done, current.spec.evaluate
    is_last = done == current.spec.rounds
    if plan is not None and done > current.evaluated and (is_last or done % plan.every == 0):
        return OpenRound("evaluate", done, attempt)
    return None if is_last else OpenRound("train", done + 1, attempt)


def _finish(
    current: Experiment,
    at: float,
    state: ExperimentState,
    reason: str | None,
    notes: list[Effect] | None = None,
) -> Transition:
    over = replace(_stop_watch(current, at), state=state, reason=reason)
    return Transition(over, _effects([*(notes or ()), _report_state(over)], *_cancels(over)))


def _stop_watch(current: Experiment, at: float) -> Experiment:
    if current.running_since is None:
        return current
    return replace(
        current, running_since=None, spent_s=current.spent_s + max(0.0, at - current.running_since)
    )


def _start(current: Experiment, opened: OpenRound) -> Effect:
    plan = current.spec.evaluate
    if opened.kind == "train" and current.spec.mode.kind == "async":
        return MergeUpdates(make_merge_request(current, opened))
    central = opened.kind == "evaluate" and plan is not None and plan.on == "central"
    request = make_request(current, opened)
    return EvaluateCentrally(request) if central else StartRound(request)


def _cancels(over: Experiment) -> list[Effect]:
    """Everything that is open, once the experiment is over."""
    reason = f"the experiment is {over.state}" + (f": {over.reason}" if over.reason else "")
    names = [] if over.open is None else [round_id(over.id, over.open)]
    return [
        CancelRound(name, reason) for name in (*names, *(wave_id(over.id, one.number) for one in over.waves))
    ]


def _cancels_of_stale(before: Experiment, after: Experiment) -> list[Effect]:
    known = {one.number for one in before.waves if one.is_cancelled}
    return [_cancel_wave(after, one) for one in after.waves if one.is_cancelled and one.number not in known]


def _cancel_wave(current: Experiment, wave: Wave) -> Effect:
    return CancelRound(wave_id(current.id, wave.number), explain_staleness(current))


def _effects(notes: list[Effect], *next_: Effect) -> tuple[Effect, ...]:
    """All effects in order. Aliases are moved last: what is next does not wait for them."""
    reports = [one for one in notes if isinstance(one, Report)]
    marks = [one for one in notes if not isinstance(one, Report)]
    return (Persist(), *reports, *next_, *marks)


def _report_state(current: Experiment) -> Report:
    return Report("state", {"state": current.state.value, "reason": current.reason})


def _report_start(current: Experiment, opened: OpenRound) -> Report:
    what = {"round_id": round_id(current.id, opened), **asdict(opened)}
    return Report("round_started", {**what, "base_version": current.version})


def _wave(current: Experiment, wave: Wave) -> dict[str, object]:
    return {"round_id": wave_id(current.id, wave.number), "kind": "wave", "number": wave.number, "attempt": 1}


def _report_end(opened: OpenRound, event: RoundEnded) -> Report:
    state = "completed" if event.reason is None else "failed"
    what = {"round_id": event.round_id, **asdict(opened), "state": state}
    return Report("round_ended", {**what, "version": event.version, "reason": event.reason})


def _time_is_over(current: Experiment) -> str:
    return f"stop.max_time_s: {current.spec.stop.max_time_s:g} s have passed"
