"""``propeller experiments`` and ``propeller experiment …``: what there is, how it went, and steering it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.filesize import decimal

from propeller.cli.connection import Target
from propeller.cli.follow import follow
from propeller.cli.tables import Column, fits, format_number, print_fields, print_rows
from propeller.cli.terminal import Terminal, escape
from propeller.errors import StartError
from propeller.process.control_characters import escape_line
from propeller.protocol.compression import Compression
from propeller.protocol.history import METRIC_PREFIX
from propeller.sdk import History

_EXPERIMENT_COLUMNS = (
    Column("experiment"),
    Column("state"),
    Column("rounds", right=True),
    Column("strategy", spare=1),
    Column("model", spare=3),
    Column("best", spare=2),
    Column("started", spare=4),
)

Verb = Literal["pause", "resume", "stop"]

_MAX_NAMED = 10
"""Devices that are named of those that do the same."""

_SAID = {
    "pause": "pauses after the round that runs",
    "resume": "goes on",
    "stop": "is stopped; its model versions stay",
}


def list_experiments(
    target: Target, *, only: str | None, name: str | None, limit: int, as_json: bool
) -> None:
    """Print the newest experiments, newest first."""
    with target.connect() as fl:
        found = fl.experiments(only, limit, name=name)
    if as_json:
        print(json.dumps(found))
        return
    console = Terminal()
    if not found:
        called = "" if name is None else f" called {name}"
        console.print(f"No experiments{called}{'' if only is None else f' that are {only}'}.", markup=False)
        return
    print_experiments(console, found)


def print_experiments(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """Print experiments, a line each, and why those ended that failed."""
    rows = [
        (
            one["id"],
            one["state"],
            f"{one['done']}/{one['rounds']}",
            _strategy_name(one),
            _version(one.get("model_version")),
            _best(one),
            _moment(one.get("started_at"))[5:16],
        )
        for one in found
    ]
    print_rows(console, _EXPERIMENT_COLUMNS, rows)
    print_reasons(console, ((one["id"], one.get("reason")) for one in found))


def print_reasons(console: Console, reasons: Iterable[tuple[str, str | None]]) -> None:
    """Print why each of those ended that have a reason."""
    for name, reason in reasons:
        if reason:
            console.print(escape_line(f"{name}: {reason}"), markup=False, soft_wrap=True)


def print_stages(console: Console, detail: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Print what participants do whose updates a round waits for, as far as that is known."""
    devices: dict[str, list[str]] = {}
    for one in detail.get("stages") or []:
        devices.setdefault(one["stage"], []).append(_device(one, names))
    for stage, found in devices.items():
        some = ", ".join(found[:_MAX_NAMED]) + (
            f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        )
        console.print(escape_line(f"{detail['round_id']}: {stage}: {some}"), markup=False, soft_wrap=True)


def show_experiment(target: Target, experiment_id: str, *, as_json: bool) -> None:
    """Print an experiment: how it stands, what was asked for, and the round that runs."""
    with target.connect() as fl:
        status = fl.experiment(experiment_id).status()
        names = {} if as_json else fl.device_names()
    if as_json:
        print(json.dumps(status))
        return
    console = Terminal()
    shown = {
        "experiment": status["id"],
        "state": status["state"],
        "reason": status.get("reason"),
        "rounds": f"{status['done']} of {status['rounds']}",
        "strategy": _strategy(status),
        "updates": _compression(status["spec"]),
        "program": status.get("program"),
        "model": _version(status.get("model_version")),
        "best": _best(status),
        "created": _moment(status.get("created_at")),
        "started": _moment(status.get("started_at")),
        "ended": _moment(status.get("ended_at")),
    }
    print_fields(console, shown)
    if status.get("round"):
        _show_round(status["round"], names, console)
        print_stages(console, status["round"], names)
    console.print(f"[dim]asked for[/]  {escape(json.dumps(status['spec']))}", soft_wrap=True)


def show_history(
    target: Target, experiment_id: str, *, form: Literal["table", "csv", "json"], devices: bool = False
) -> None:
    """Print every round of an experiment; with ``devices`` the table has a line for each participant."""
    with target.connect() as fl:
        handle = fl.experiment(experiment_id)
        if form == "csv":
            print(handle.history_csv(), end="")
            return
        history = handle.history()
        names = fl.device_names() if form == "table" else {}
    if form == "json":
        print(json.dumps({"id": history.id, "rounds": list(history)}))
        return
    console = Terminal()
    if devices:
        _print_devices(console, history, names)
    else:
        _print_rounds(console, history)
    for one in history:
        for failure in () if devices else one["failures"]:
            console.print(
                f"[red]✗[/] round {one['number']} ({one['kind']}): {escape(_device(failure, names))} failed: "
                f"{escape(failure['reason'])}",
                soft_wrap=True,
            )
        if one["state"] == "failed":
            console.print(
                f"[red]✗[/] round {one['number']} failed: {escape(one.get('reason') or '')}", soft_wrap=True
            )


def _print_devices(console: Console, history: History, names: Mapping[str, str]) -> None:
    """A line for each participant of each round."""
    rows = history.rows()
    metrics = list(dict.fromkeys(name for row in rows for name in row if name.startswith(METRIC_PREFIX)))
    columns = (
        Column("round", right=True),
        Column("kind"),
        Column("device"),
        Column("outcome"),
        Column("samples", right=True, spare=1),
        *(
            Column(name.removeprefix(METRIC_PREFIX), right=True, spare=at)
            for at, name in enumerate(metrics, 3)
        ),
        Column("sent", right=True, spare=len(metrics) + 3),
        Column("why", spare=2),
    )
    shown = [
        (
            _round_number(row),
            row["kind"],
            _device(row, names) if row["proplet_id"] else "",
            row["outcome"],
            str(row["num_samples"] or ""),
            *(_number(row.get(name)) for name in metrics),
            decimal(row["bytes"]) if row["bytes"] else "",
            " ".join((row["reason"] or "").split()),
        )
        for row in rows
    ]
    print_rows(console, columns, shown)


def _print_rounds(console: Console, history: History) -> None:
    """A line for each round."""
    metrics = history.metric_names()
    compressed = any(one.get("bytes_saved") for one in history)
    columns = (
        Column("round", right=True),
        Column("kind"),
        Column("state"),
        Column("updates", right=True),
        Column("samples", right=True, spare=1),
        # Those that come last are the first to go: a program names what matters most first.
        *(Column(name, right=True, spare=at) for at, name in enumerate(metrics, 2)),
        *([Column("sent", right=True, spare=len(metrics) + 1)] if compressed else []),
        Column("model", right=True, spare=1),
        Column("seconds", right=True, spare=len(metrics) + 2),
    )
    rows = [
        (
            _round_number(one),
            one["kind"],
            one["state"],
            str(len(one["updates"])),
            str(one.get("num_samples") or ""),
            *(_number((one.get("metrics") or {}).get(name)) for name in metrics),
            *([_sent(one)] if compressed else []),
            _version(one.get("model_version")),
            _number(one.get("seconds"), 3),
        )
        for one in history
    ]
    print_rows(console, columns, rows)


def compare_experiments(target: Target, ids: Sequence[str], *, metric: str | None, as_json: bool) -> None:
    """Print the metrics of several experiments side by side, round by round.

    Raises:
        StartError: no experiment has such a metric.
    """
    with target.connect() as fl:
        histories = [fl.experiment(one).history() for one in ids]
    columns = {
        (kind, name): {history.id: dict(history.metric(name, kind)) for history in histories}
        for kind in ("train", "evaluate")
        for name in dict.fromkeys(name for history in histories for name in _names(history, kind))
    }
    if metric is not None:
        known = list(dict.fromkeys(name for _, name in columns))
        columns = {key: found for key, found in columns.items() if key[1] == metric}
        if not columns:
            raise StartError(f"--metric: no round has {metric!r}; there are {', '.join(known) or 'none'}")
    if as_json:
        document = [
            {"kind": kind, "metric": name, "experiments": found} for (kind, name), found in columns.items()
        ]
        print(json.dumps(document))
        return
    console = Terminal()
    for (kind, name), found in columns.items():
        _print_comparison(console, f"{name} ({kind})", found)


def steer_experiments(target: Target, ids: Sequence[str], verb: Verb) -> None:
    """Pause, resume or stop experiments."""
    console = Terminal()
    with target.connect() as fl:
        for one in ids:
            handle = fl.experiment(one)
            {"pause": handle.pause, "resume": handle.resume, "stop": handle.stop}[verb]()
            console.print(f"{handle.id} {_SAID[verb]}", soft_wrap=True)


def follow_experiment(target: Target, experiment_id: str, *, as_json: bool) -> None:
    """Show an experiment from its beginning to its end.

    Raises:
        ExperimentFailedError: it failed.
    """
    console = Terminal()
    with target.connect() as fl:
        handle = fl.experiment(experiment_id)
        follow(fl, handle, target, rounds=handle.status()["rounds"], as_json=as_json, console=console)


def _print_comparison(console: Console, title: str, found: Mapping[str, Mapping[int, float]]) -> None:
    """A column an experiment; where their ids have no room, the columns have numbers that are explained."""
    console.print(f"[bold]{escape(title)}[/]")
    rows = [
        (str(number), *(_number(values.get(number)) for values in found.values()))
        for number in sorted({number for values in found.values() for number in values})
    ]
    columns = [Column("round", right=True), *(Column(one, right=True) for one in found)]
    if fits(console, columns, rows):
        print_rows(console, columns, rows)
        return
    print_fields(console, {f"({at})": one for at, one in enumerate(found, 1)})
    print_rows(console, [columns[0], *(Column(f"({at})", right=True) for at in range(1, len(columns)))], rows)


def _compression(spec: Mapping[str, Any]) -> str | None:
    """How updates are compressed, if they are."""
    asked = (spec.get("update") or {}).get("compression")
    return None if asked is None or asked == "none" else str(Compression.decode(asked))


def _sent(one: Mapping[str, Any]) -> str:
    """The bytes of a round's updates, and how much less that is than without compression."""
    received, saved = one.get("bytes") or 0, one.get("bytes_saved") or 0
    if not received:
        return ""
    return f"{decimal(received)} ({-100 * saved / (received + saved):+.0f} %)"


def _round_number(one: Mapping[str, Any]) -> str:
    return f"{one['number']}" + (f" ({one['attempt']})" if (one.get("attempt") or 1) > 1 else "")


def _device(one: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A participant as people call it: as it was called then, else as it is now."""
    return str(one.get("name") or names.get(one["proplet_id"], one["proplet_id"]))


def _names(history: History, kind: str) -> list[str]:
    return [name for name in history.metric_names() if history.metric(name, kind)]


def _show_round(current: Mapping[str, Any], names: Mapping[str, str], console: Console) -> None:
    console.print(
        f"[dim]runs now[/]  {escape(current['round_id'])}: {current.get('state', '')}, "
        f"updates {current.get('num_updates', 0)}/{current.get('k_of_n') or '?'}",
        soft_wrap=True,
    )
    for failure in current.get("failures") or []:
        device = escape(_device(failure, names))
        console.print(f"  [red]✗[/] {device} failed: {escape(failure['reason'])}", soft_wrap=True)


def _strategy(one: Mapping[str, Any]) -> str:
    strategy = one.get("strategy") or "fedavg"
    if isinstance(strategy, str):
        return strategy
    params = " ".join(
        f"{name}={value}" for name, value in strategy.items() if name not in {"name", "program"}
    )
    return f"{strategy.get('name') or strategy.get('program')} {params}".strip()


def _strategy_name(one: Mapping[str, Any]) -> str:
    """The strategy without its parameters; a program by the last part of its repository."""
    strategy = one.get("strategy") or "fedavg"
    if isinstance(strategy, str):
        return strategy
    program = str(strategy.get("program", "")).rpartition("/")[2].partition("@")[0]
    return str(strategy.get("name") or program)


def _best(one: Mapping[str, Any]) -> str:
    best = one.get("best")
    return f"v{best['version']} {best['metric']} {_number(best['value'])}" if best else ""


def _version(version: int | None) -> str:
    return "" if version is None else f"v{version}"


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else format_number(value, digits)


def _moment(text: str | None) -> str:
    return "" if text is None else text[:19].replace("T", " ")
