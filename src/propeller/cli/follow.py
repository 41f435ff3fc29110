"""Following an experiment: a line for each round that ends, and a table of what runs at a terminal."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from propeller.cli.connection import Target
from propeller.cli.tables import format_number
from propeller.cli.terminal import escape
from propeller.errors import PropellerError
from propeller.sdk import Event, ExperimentFailedError, ExperimentHandle, ExperimentResult, Propeller

MAX_SHOWN_FAILURES = 10
"""Of one round; further ones are counted."""

REFRESHES_PER_S = 4

_NOUNS = {"train": "round", "evaluate": " eval", "wave": " wave"}
"""What each kind of round is called, in equal widths."""


@dataclass
class OpenRound:
    """A round that runs.

    Attributes:
        number: of the training round, of the one that an evaluation follows, or of the wave.
        attempt: 1, and one more for each time that the round was tried again.
        kind: ``train``, ``evaluate``, or ``wave``: devices of an asynchronous experiment that start together.
        participants: how many were chosen.
        wanted: how many updates close it.
        base_version: the model that is trained or evaluated.
        begun, deadline: when; ``None`` if it is not known.
        updates: how many came.
        sums: of each metric: the sum over the updates, weighted by their samples, and of these samples.
        failures: device → why.
        repeated: how many of them failed for the same reason before.
    """

    number: int
    attempt: int
    kind: str
    participants: int
    wanted: int
    base_version: int | None
    begun: datetime | None
    deadline: datetime | None
    updates: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    repeated: int = 0

    @property
    def title(self) -> str:
        """What it is, for a person."""
        again = f" try {self.attempt}" if self.attempt > 1 else ""
        return f"{_NOUNS.get(self.kind, self.kind)} {self.number:>2}{again}"

    def add(self, update: Mapping[str, Any]) -> None:
        """Count an update."""
        self.updates = update.get("updates", self.updates + 1)
        samples = update.get("num_samples") or 1
        for name, value in (update.get("metrics") or {}).items():
            total, weight = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + samples * value, weight + samples)

    def metrics(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / weight for name, (total, weight) in self.sums.items()}


class Progress:
    """What is known of an experiment from its events.

    Attributes:
        state: of the experiment.
        open: the rounds that run, by their ids.
        done: training rounds that completed.
        best: the best version so far, with its metric and value.
        waiting: what is waited for.
        failed: how often each device failed, by its name.
        short: titles of the training rounds that completed with fewer updates than were asked for.
    """

    def __init__(self, rounds: int, names: Mapping[str, str]) -> None:
        """``rounds`` are asked for; ``names`` are those of devices by id."""
        self.rounds, self._names = rounds, names
        self.state, self.done = "queued", 0
        self.open: dict[str, OpenRound] = {}
        self.best: Mapping[str, Any] | None = None
        self.waiting = ""
        self.failed: Counter[str] = Counter()
        self.short: list[str] = []
        self._told: dict[str, str] = {}
        """Device → why it failed, as it was said last; not said again."""
        self._first: dict[str, str] = {}
        """Reason → the name of the device of which it was said first."""
        self._noted: set[str] = set()
        self._begun: datetime | None = None
        self._last_end: datetime | None = None

    def take(self, event: Event) -> list[str]:
        """Take an event; lines (rich markup) that a person should see."""
        data = event.data
        match event.kind:
            case "state":
                return self._change_state(data)
            case "waiting":
                return self._wait(str(data.get("reason") or data.get("for") or "enough devices"))
            case "note":
                return self._note(str(data["reason"]))
            case "round_started":
                self._start(data, event.at)
            case "update" if data.get("round_id") in self.open:
                self.open[data["round_id"]].add(data)
            case "failure":
                return self._fail(data)
            case "round_ended":
                return self._end(data, event.at)
            case "best":
                self.best = data
        return []

    def time_left(self, now: datetime) -> float | None:
        """About how long it still takes, in seconds; ``None`` before the first round has ended.

        By the time from one training round's end to the next one's: evaluations and waves are in it.
        """
        if not self.done or self._begun is None or self._last_end is None:
            return None
        mean = (self._last_end - self._begun).total_seconds() / self.done
        running = (now - self._last_end).total_seconds()
        return max((self.rounds - self.done) * mean - min(running, mean), 0.0)

    def name_of(self, device: str, told: str | None = None) -> str:
        """A device as a person knows it; ``told`` is its name in the event."""
        return told or self._names.get(device, device)

    def _change_state(self, data: Mapping[str, Any]) -> list[str]:
        before, self.state = self.state, data["state"]
        if self.state == "paused":
            return ["  [yellow]paused[/]: the round that runs is the last one until it is resumed"]
        return ["  goes on"] if (before, self.state) == ("paused", "running") else []

    def _note(self, reason: str) -> list[str]:
        if reason in self._noted:
            return []
        self._noted.add(reason)
        return [f"  [yellow]note[/]: {escape(reason)}"]

    def _wait(self, reason: str) -> list[str]:
        before, self.waiting = self.waiting, reason
        return [] if reason == before else [f"  [yellow]waiting[/]: {escape(reason)}"]

    def _start(self, data: Mapping[str, Any], at: datetime | None) -> None:
        self.waiting, self._begun = "", self._begun or at
        participants, deadline = data.get("participants") or [], data.get("deadline")
        count = participants if isinstance(participants, int) else len(participants)
        self.open[data["round_id"]] = OpenRound(
            data["number"],
            data.get("attempt", 1),
            data.get("kind", "train"),
            count,
            data.get("k_of_n") or count,
            data.get("base_version"),
            at,
            datetime.fromisoformat(deadline) if deadline else None,
        )

    def _fail(self, data: Mapping[str, Any]) -> list[str]:
        current, device, reason = self.open.get(data["round_id"]), data["proplet_id"], data["reason"]
        name = self.name_of(device, data.get("name"))
        self.failed[name] += 1
        where = f"round {data.get('number', '?')}"
        if current is not None:
            current.failures[device] = reason
            where = current.title.strip()
            if self._told.get(device) == reason:
                current.repeated += 1
                return []
            if len(current.failures) > MAX_SHOWN_FAILURES:
                return []
        self._told[device] = reason
        first = self._first.setdefault(reason, name)
        why = reason if first == name else f"the same as {first}"
        return [f"  [red]✗[/] {where}: {escape(name)} failed: {escape(why)}"]

    def _end(self, data: Mapping[str, Any], at: datetime | None) -> list[str]:
        current = self.open.pop(data["round_id"], None)
        if current is None:
            return []
        seconds = data.get("seconds")
        if data["state"] != "completed":
            reason = self._shorten(str(data.get("reason") or "no reason is known"), current)
            return [f"  {current.title}  [red]failed[/]: {escape(reason)}"]
        if current.kind == "train":
            self.done, self._last_end = self.done + 1, at
            version = data.get("model_version", data.get("version"))
        else:
            version = current.base_version
        more = len(current.failures) - MAX_SHOWN_FAILURES
        failed = [f"  [red]✗[/] and {more} more"] if more > 0 else []
        took = "" if seconds is None else f", {_duration(seconds)}"
        # The updates of a merge came in waves before it: its end alone tells of them.
        updates = data.get("updates", current.updates)
        count = f"updates {updates}/{current.participants}"
        if current.kind == "train" and updates < current.wanted:
            self.short.append(current.title.strip())
            count = f"[yellow]{count}, {current.wanted} were asked for[/]"
        metrics = _format_metrics(current.metrics() or data.get("metrics") or {})
        where = f"[dim]v{version}{took}, {escape(data['round_id'])}[/]"
        return [*failed, f"  {current.title}  {count}  {escape(metrics)}  {where}"]

    def _shorten(self, reason: str, current: OpenRound) -> str:
        """Why a round failed, without why its devices did, which was said of each of them."""
        before = ", as before" if current.repeated and current.repeated == len(current.failures) else ""
        for told in current.failures.values():
            if told in self._first:
                reason = reason.replace(f"participants failed: {told}", f"participants failed{before}")
        return reason


def follow(
    fl: Propeller,
    handle: ExperimentHandle,
    target: Target,
    *,
    rounds: int,
    as_json: bool,
    console: Console,
    strict: bool = False,
) -> None:
    """Show what happens until the experiment is over; Ctrl-C only ends the showing.

    Args:
        fl: its stack.
        handle: the experiment.
        target: how the command line names the stack.
        rounds: training rounds that were asked for.
        as_json: print each event as a line of JSON, and nothing else.
        console: where to print.
        strict: raise also if a device failed on the way.

    Raises:
        ExperimentFailedError: the experiment failed; the text has the reason.
        PropellerError: ``strict``, and a device failed, or a round was made of fewer updates than were asked for.
        KeyboardInterrupt: after it was said that the experiment goes on, and how to end it.
    """
    progress = Progress(rounds, {} if as_json else fl.device_names())
    try:
        if as_json:
            for event in handle.events():
                print(json.dumps({"id": event.id, "event": event.kind, **event.data}), flush=True)
                progress.take(event)
        else:
            _show(handle, progress, console)
        result = ExperimentResult.from_summary(handle.status())
    except KeyboardInterrupt:
        print(
            f"\nExperiment {handle.id} goes on without this terminal.\n"
            f"  follow it again: {target.command('experiment', 'follow', handle.id)}\n"
            f"  end it:          {target.command('experiment', 'stop', handle.id)}",
            file=sys.stderr,
        )
        raise
    trouble = _describe_trouble(progress)
    if not as_json:
        # An experiment that failed says why, and each device was named with its reason.
        if trouble and result.state != "failed":
            console.print(f"[yellow]{escape(trouble)}[/]", soft_wrap=True)
        for line in summary_lines(fl, result, target):
            console.print(line, soft_wrap=True)
    if result.state == "failed":
        raise ExperimentFailedError(result)
    if strict and trouble:
        raise PropellerError(f"--strict: {trouble}")


def _describe_trouble(progress: Progress) -> str:
    """Which devices failed, and which rounds were short of updates; empty if all went well."""
    parts = []
    if progress.failed:
        most = progress.failed.most_common(MAX_SHOWN_FAILURES)
        named = ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in most)
        more = f", and {len(progress.failed) - len(most)} more" if len(progress.failed) > len(most) else ""
        parts.append(f"devices that failed: {named}{more}")
    if progress.short:
        count = len(progress.short)
        parts.append(f"made of fewer updates than were asked for: {count} round{'' if count == 1 else 's'}")
    return "; ".join(parts)


def summary_lines(fl: Propeller, result: ExperimentResult, target: Target) -> Iterator[str]:
    """How an experiment ended, and how to get its models."""

    def place(version: int) -> str:
        command = target.command("model", "export", str(version), f"v{version}.safetensors")
        return f"{fl.url('model_registry')}/models/{version}  [dim]({escape(command)})[/]"

    took = "" if result.seconds is None else f" in {_duration(result.seconds)}"
    if result.state != "failed":
        why = f": {escape(result.reason)}" if result.reason else ""
        yield f"{result.state.capitalize()} after {result.rounds} of {result.asked} rounds{took}{why}"
    by = f"{escape(result.best['metric'])} {format_number(result.best['value'])}" if result.best else ""
    version, best = result.model_version, result.best["version"] if result.best else None
    if version is not None and not result.rounds and best is None:
        yield f"No round was completed: model v{version} is the one it began with"
        return
    if best is not None and best != version:
        yield f"Model v{best}, the best by {by}, is at {place(best)}"
    if version is not None:
        yield f"Model v{version}{f', the best by {by},' if best == version else ''} is at {place(version)}"


def _show(handle: ExperimentHandle, progress: Progress, console: Console) -> None:
    if not console.is_terminal:
        for event in handle.events():
            for line in progress.take(event):
                console.print(line, soft_wrap=True)
        return
    with Live(
        get_renderable=lambda: _table(progress),
        console=console,
        refresh_per_second=REFRESHES_PER_S,
        transient=True,
    ) as live:
        for event in handle.events():
            for line in progress.take(event):
                live.console.print(line, soft_wrap=True)


def _table(progress: Progress) -> Group:
    """What runs now."""
    now = datetime.now(UTC)
    table = Table(box=None, padding=(0, 0, 0, 2))
    for column in ("", "updates", "failed", "running", "deadline in", "so far"):
        table.add_column(column, header_style="dim", no_wrap=column != "so far")
    for one in progress.open.values():
        table.add_row(
            one.title,
            f"{one.updates}/{one.wanted}",
            str(len(one.failures) or ""),
            "" if one.begun is None else _duration(max((now - one.begun).total_seconds(), 0)),
            "" if one.deadline is None else _duration(max((one.deadline - now).total_seconds(), 0)),
            Text(_format_metrics(one.metrics()), no_wrap=True, overflow="ellipsis"),
        )
    idle = f"waiting: {progress.waiting}" if progress.waiting else progress.state
    left, best = progress.time_left(now), progress.best
    parts = [f"{progress.done} of {progress.rounds} rounds"]
    if left is not None and progress.state == "running":
        parts.append(f"about {_duration(left)} left")
    if best:
        parts.append(f"best v{best['version']}: {best['metric']} {format_number(best['value'])}")
    return Group(
        table if progress.open else f"  {escape(idle)}",
        f"[dim]  {escape(' · '.join(parts))} · Ctrl-C leaves it running[/]",
    )


def _format_metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {format_number(value)}" for name, value in metrics.items())


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
