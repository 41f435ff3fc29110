"""``propeller experiments`` and ``propeller experiment …``: what there is, how it went, and steering it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from propeller.cli.connection import Target
from propeller.cli.follow import follow
from propeller.process.run import StartError
from propeller.sdk import History

_WHOLE = {"experiment", "state", "rounds", "model", "started"}
"""Columns that are never broken into lines: an id is there to be copied."""

Verb = Literal["pause", "resume", "stop"]

_SAID = {
    "pause": "pauses after the round that runs",
    "resume": "goes on",
    "stop": "is stopped; its model versions stay",
}


def list_experiments(target: Target, *, only: str | None, limit: int, as_json: bool) -> None:
    """Print the newest experiments, newest first."""
    with target.connect() as fl:
        found = fl.experiments(only, limit)
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        {
            "experiment": one["id"],
            "state": one["state"],
            "rounds": f"{one['done']}/{one['rounds']}",
            "strategy": escape(_strategy(one)),
            "model": _version(one.get("model_version")),
            "best": escape(_best(one)),
            "started": _moment(one.get("started_at"))[5:16],
            "reason": escape(one.get("reason") or ""),
        }
        for one in found
    ]
    table = Table()
    for column in ("experiment", "state", "rounds", "strategy", "model", "best", "started", "reason"):
        if column == "experiment" or any(row[column] for row in rows):
            table.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    Console(highlight=False).print(table)


def show_experiment(target: Target, experiment_id: str, *, as_json: bool) -> None:
    """Print an experiment: how it stands, what was asked for, and the round that runs."""
    with target.connect() as fl:
        status = fl.experiment(experiment_id).status()
        names = {} if as_json else fl.device_names()
    if as_json:
        print(json.dumps(status))
        return
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shown = {
        "experiment": status["id"],
        "state": status["state"],
        "reason": status.get("reason"),
        "rounds": f"{status['done']} of {status['rounds']}",
        "strategy": _strategy(status),
        "program": status.get("program"),
        "model": _version(status.get("model_version")),
        "best": _best(status),
        "created": _moment(status.get("created_at")),
        "started": _moment(status.get("started_at")),
        "ended": _moment(status.get("ended_at")),
    }
    for name, value in shown.items():
        if value:
            table.add_row(f"[dim]{name}[/]", escape(str(value)))
    console.print(table)
    if status.get("round"):
        _show_round(status["round"], names, console)
    console.print(f"[dim]asked for[/]  {escape(json.dumps(status['spec']))}", soft_wrap=True)


def show_history(target: Target, experiment_id: str, *, form: Literal["table", "csv", "json"]) -> None:
    """Print every round of an experiment."""
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
    console, metrics = Console(highlight=False), history.metric_names()
    table = Table()
    for column in ("round", "kind", "state", "updates", "samples", *metrics, "model", "seconds"):
        table.add_column(escape(column), justify="left" if column in {"kind", "state"} else "right")
    for one in history:
        attempt = f" ({one['attempt']})" if one.get("attempt", 1) > 1 else ""
        table.add_row(
            f"{one['number']}{attempt}",
            one["kind"],
            one["state"],
            str(len(one["updates"])),
            str(one.get("num_samples") or ""),
            *(_number((one.get("metrics") or {}).get(name)) for name in metrics),
            _version(one.get("model_version")),
            _number(one.get("seconds"), 3),
        )
    console.print(table)
    for one in history:
        for failure in one["failures"]:
            device = names.get(failure["proplet_id"], failure["proplet_id"])
            console.print(
                f"[red]✗[/] round {one['number']} ({one['kind']}): {escape(device)} failed: {escape(failure['reason'])}",
                soft_wrap=True,
            )
        if one["state"] == "failed":
            console.print(
                f"[red]✗[/] round {one['number']} failed: {escape(one.get('reason') or '')}", soft_wrap=True
            )


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
    console = Console(highlight=False)
    for (kind, name), found in columns.items():
        console.print(_comparison(f"{name} ({kind})", found))


def steer_experiments(target: Target, ids: Sequence[str], verb: Verb) -> None:
    """Pause, resume or stop experiments."""
    console = Console(highlight=False)
    with target.connect() as fl:
        for one in ids:
            handle = fl.experiment(one)
            {"pause": handle.pause, "resume": handle.resume, "stop": handle.stop}[verb]()
            console.print(f"{one} {_SAID[verb]}", soft_wrap=True)


def follow_experiment(target: Target, experiment_id: str, *, as_json: bool) -> None:
    """Show an experiment from its beginning to its end.

    Raises:
        ExperimentFailedError: it failed.
    """
    console = Console(highlight=False)
    with target.connect() as fl:
        handle = fl.experiment(experiment_id)
        follow(fl, handle, target, rounds=handle.status()["rounds"], as_json=as_json, console=console)


def _comparison(title: str, found: Mapping[str, Mapping[int, float]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("round", justify="right")
    for experiment in found:
        table.add_column(escape(experiment), justify="right", overflow="fold")
    for number in sorted({number for values in found.values() for number in values}):
        table.add_row(str(number), *(_number(values.get(number)) for values in found.values()))
    return table


def _names(history: History, kind: str) -> list[str]:
    return [name for name in history.metric_names() if history.metric(name, kind)]


def _show_round(current: Mapping[str, Any], names: Mapping[str, str], console: Console) -> None:
    console.print(
        f"[dim]runs now[/]  {escape(current['round_id'])}: {current.get('state', '')}, "
        f"updates {current.get('num_updates', 0)}/{current.get('k_of_n') or '?'}",
        soft_wrap=True,
    )
    for failure in current.get("failures") or []:
        device = names.get(failure["proplet_id"], failure["proplet_id"])
        console.print(f"  [red]✗[/] {escape(device)} failed: {escape(failure['reason'])}", soft_wrap=True)


def _strategy(one: Mapping[str, Any]) -> str:
    strategy = one.get("strategy") or "fedavg"
    if isinstance(strategy, str):
        return strategy
    params = " ".join(
        f"{name}={value}" for name, value in strategy.items() if name not in {"name", "program"}
    )
    return f"{strategy.get('name') or strategy.get('program')} {params}".strip()


def _best(one: Mapping[str, Any]) -> str:
    best = one.get("best")
    return f"v{best['version']}: {best['metric']} {_number(best['value'])}" if best else ""


def _version(version: int | None) -> str:
    return "" if version is None else f"v{version}"


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _moment(text: str | None) -> str:
    return "" if text is None else text[:19].replace("T", " ")
