"""``propeller simulate``: an experiment file with a virtual fleet on this machine."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from propeller.cli.experiment_file import ExperimentFile
from propeller.cli.simulation_results import results_folder, write_results
from propeller.cli.terminal import Terminal, escape
from propeller.coordinator.rounds import RoundRecord
from propeller.errors import PropellerError, StartError
from propeller.sdk import Experiment
from propeller.simulation import Simulation, simulate
from propeller.simulation.description import SimulationSpec
from propeller.simulation.experiment import SimulatedExperiment
from propeller.simulation.fleet import fleet_of
from propeller.wasm.owners_limits import MEMORY_SETTING

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
    native_python: Path | None = None
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
    console = Terminal(stderr=options.as_json)
    with contextlib.ExitStack() as stack:
        out = None if options.out is None else stack.enter_context(results_folder(options.out))
        ended = _simulate(described, experiment, spec, data, options, console)
        if out is not None:
            write_results(out, ended)
    if options.as_json:
        json.dump({**ended.status(), "history": ended.history()}, sys.stdout)
        print()
    else:
        _print_summary(console, ended, options.out)
    if ended.state == "failed":
        raise PropellerError(f"the experiment failed: {ended.reason}{_remedy(ended.reason)}")


def _remedy(reason: str | None) -> str:
    """Where a limit is set that tasks of a simulation have from the environment."""
    if not (reason or "").partition("memory_bytes: over the limit")[1]:
        return ""
    return f". {MEMORY_SETTING}=BYTES gives a task more memory: here as on the device, whose owner sets it"


def _simulate(
    described: ExperimentFile,
    experiment: Experiment,
    spec: SimulationSpec,
    data: str | None,
    options: Options,
    console: Console,
) -> Simulation:
    """Run it, and show how it goes."""
    with Progress(
        TextColumn("  {task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        shown = _Shown(bar, experiment.spec.rounds)
        return simulate(
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
            native_python=_interpreter(described, spec, options),
            first_version=spec.first_version,
            observe=shown.observe,
            notify=shown.notify,
        )


class _Shown:
    """What is shown while it runs: a line for each round that ends, and how fast it goes."""

    def __init__(self, bar: Progress, rounds: int) -> None:
        # Until the first round: a program that is compiled for the first time takes a while.
        self._bar = bar
        self._task = bar.add_task(
            "preparing the program (20 s or more the first time)", total=rounds, rate=""
        )
        self._began: float | None = None

    def notify(self, notice: str) -> None:
        self._bar.console.print(f"  [yellow]{escape(notice)}[/]", soft_wrap=True)

    def observe(self, running: SimulatedExperiment, record: RoundRecord) -> None:
        if self._began is None:
            self._began = time.monotonic()
            self._bar.update(self._task, description="round")
        started = time.monotonic() - self._began
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


def _interpreter(described: ExperimentFile, spec: SimulationSpec, options: Options) -> Path | None:
    """The interpreter of a native program: of the file, relative to that, or of the command line."""
    if options.native_python is not None:
        return options.native_python
    return None if spec.native_python is None else described.folder / spec.native_python


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
