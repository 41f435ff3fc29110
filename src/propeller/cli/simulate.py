"""``propeller simulate``: an experiment file with a virtual fleet on this machine."""

import contextlib
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from propeller.cli.experiment_file import ExperimentFile
from propeller.coordinator.rounds import RoundRecord
from propeller.errors import InvalidError, PropellerError, StartError
from propeller.sdk.values import encode_model
from propeller.simulation import Simulation, simulate
from propeller.simulation.description import SimulationSpec
from propeller.simulation.experiment import SimulatedExperiment
from propeller.simulation.fleet import fleet_of
from propeller.simulation.pictures import svg_of

_SHOWN_METRICS = 4


@dataclass(frozen=True)
class Options:
    """What the command line says; ``None``: as the file has it.

    ``partition`` is a kind, or JSON; ``devices`` a CSV file, or JSON. ``labels``: only show how the data is divided.
    """

    clients: int | None = None
    data: str | None = None
    partition: str | None = None
    devices: str | None = None
    first_version: int | None = None
    program: str | None = None
    strategy_program: str | None = None
    workers: int | None = None
    ray: str | None = None
    out: Path | None = None
    as_json: bool = False
    labels: bool = False


def run_simulation(file: Path, options: Options, changes: Sequence[str]) -> None:
    """Simulate the experiment of a file, and show what came of it.

    Args:
        file: the experiment; its table ``[simulation]`` describes the virtual fleet.
        options: what is said instead of that.
        changes: fields that get another value, as ``lr=0.1``.

    Raises:
        PropellerError: a field is wrong, something cannot be had, or the experiment failed.
    """
    described = ExperimentFile.load(file, changes)
    given = {
        name: value
        for name, value in (
            ("clients", options.clients),
            ("data", options.data),
            ("partition", None if options.partition is None else _parse("--partition", options.partition)),
            ("devices", None if options.devices is None else _parse("--devices", options.devices)),
            ("first_version", options.first_version),
            ("workers", options.workers),
            ("ray", options.ray),
        )
        if value is not None
    }
    try:
        spec = SimulationSpec.decode({**described.simulation, **given})
    except PropellerError as error:
        raise StartError(f"{file}: simulation: {error}") from None
    data = spec.data
    if data is not None and options.data is None and (described.folder / data).exists():
        data = str(described.folder / data)
    experiment = described.to_experiment()
    if options.labels:
        fleet = fleet_of(
            experiment, clients=spec.clients, data=data, partition=spec.partition, test=spec.test
        )
        print(fleet.label_counts())
        return
    if options.out is not None:
        _check_folder(options.out)
    console = Console(highlight=False, stderr=options.as_json)
    with Progress(
        TextColumn("  round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        shown = _Shown(bar, experiment.spec.rounds)
        ended = simulate(
            experiment,
            clients=spec.clients,
            data=data,
            partition=spec.partition,
            test=spec.test,
            devices=spec.devices.to_devices(described.folder if options.devices is None else Path()),
            program=options.program or _file_beside(described, described.spec.program),
            strategy_program=options.strategy_program
            or _file_beside(described, described.spec.strategy.program),
            workers=spec.workers,
            ray=spec.ray,
            first_version=spec.first_version,
            observe=shown.observe,
            notify=shown.notify,
        )
    if options.out is not None:
        write_results(options.out, ended)
    if options.as_json:
        json.dump({**ended.status(), "history": ended.history()}, sys.stdout)
        print()
    else:
        _print_summary(console, ended, options.out)
    if ended.state == "failed":
        raise PropellerError(f"the experiment failed: {ended.reason}")


def write_results(folder: Path, ended: Simulation) -> None:
    """Write ``history.json``, ``history.csv``, ``latest.safetensors`` and, if there is one, ``best.safetensors``; ``metrics.svg`` and, of a data set
    that was divided, ``labels.svg`` where matplotlib is installed.

    Raises:
        StartError: the folder cannot be written to.
    """
    history = ended.history()
    rows = history.rows()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.json").write_text(
            json.dumps({**ended.status(), "rounds": history}, indent=1), encoding="utf-8"
        )
        with (folder / "history.csv").open("w", encoding="utf-8", newline="") as text:
            lines = csv.DictWriter(text, columns)
            lines.writeheader()
            lines.writerows(rows)
        (folder / "latest.safetensors").write_bytes(encode_model(ended.model()))
        if ended.status()["best"] is not None:
            (folder / "best.safetensors").write_bytes(encode_model(ended.model("best")))
        with contextlib.suppress(InvalidError):  # nothing was measured, or there is no matplotlib
            (folder / "metrics.svg").write_text(svg_of(ended.figure()), encoding="utf-8")
        with contextlib.suppress(InvalidError):  # documents have no labels
            (folder / "labels.svg").write_text(ended.fleet.label_counts().svg(), encoding="utf-8")
    except OSError as error:
        raise StartError(f"--out {folder}: {error.strerror}") from None


class _Shown:
    """What is shown while it runs: a line for each round that ends, and how fast it goes."""

    def __init__(self, bar: Progress, rounds: int) -> None:
        self._bar, self._task = bar, bar.add_task("", total=rounds, rate="")

    def notify(self, notice: str) -> None:
        self._bar.console.print(f"  [yellow]{escape(notice)}[/]", soft_wrap=True)

    def observe(self, running: SimulatedExperiment, record: RoundRecord) -> None:
        started = self._bar.tasks[0].elapsed
        if started:
            rate = f"{running.done / started:.0f} tasks/s"
            self._bar.update(self._task, completed=running.record.experiment.done, rate=rate)
        if not record.state.is_over:
            return
        title = f"{'eval ' if record.kind == 'evaluate' else 'round'} {record.numbers.get('number', 0):>3}"
        if record.round.reason is not None:
            self._bar.console.print(
                f"  {title}  [red]failed[/]: {escape(record.round.reason)}", soft_wrap=True
            )
            return
        if record.round.plan.is_wave:
            return
        metrics = "  ".join(
            f"{name} {value:.4g}" for name, value in list(record.metrics.items())[:_SHOWN_METRICS]
        )
        count = f"updates {len(record.updates)}/{len(record.round.plan.participants)}"
        self._bar.console.print(f"  {title}  {count}  {escape(metrics)}", soft_wrap=True)


def _print_summary(console: Console, ended: Simulation, out: Path | None) -> None:
    status = ended.status()
    console.print(
        f"{ended.state}: {status['done']} rounds, {ended.clients} tasks in {ended.seconds:.1f} s "
        f"({ended.clients / max(ended.seconds, 1e-9):.0f} a second); on devices {ended.virtual_seconds:.0f} s",
        soft_wrap=True,
    )
    if status["best"] is not None:
        best = status["best"]
        console.print(
            f"best: version {best['version']}, {best['metric']} {best['value']:.4g}", soft_wrap=True
        )
    if out is not None:
        names = ", ".join(sorted(file.name for file in out.iterdir()))
        console.print(f"written to {escape(str(out))}: {escape(names)}", soft_wrap=True)


def _file_beside(described: ExperimentFile, program: str | None) -> str | Path | None:
    """A program of the experiment file: a file beside it, or what it is called."""
    if program is None:
        return None
    beside = described.folder / program
    return beside if beside.is_file() else program


def _parse(option: str, text: str) -> Any:
    """A name, or an object in JSON."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise StartError(f"{option}: not JSON: {error}") from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StartError(f"--out {folder}: there is a file of this name; name a folder")
