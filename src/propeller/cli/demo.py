"""``propeller demo``: three hospitals learn one classifier without sharing a record, from start to comparison."""

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from propeller.cli.terminal import Terminal
from propeller.cli.up import run_on_stack
from propeller.data import hospitals, program_source
from propeller.errors import StartError
from propeller.sdk import Experiment, Propeller
from propeller.stack.state_folder import StateFolder
from propeller.stack.up import Options

EPOCHS, LEARNING_RATE, BATCH_SIZE = 2, 0.1, 16
"""Local work of one round: passes over the hospital's records, step size, records a step."""

_MARKER_FILE, _MARKER_TEXT = (
    ".propeller-demo",
    "The content of this folder is removed when the demo is run again.\n",
)


def run_demo(folder: Path, rounds: int) -> int:
    """Run the demo with its state in ``folder`` (made anew each time); returns the exit code."""
    _prepare_folder(folder)
    started_at = time.monotonic()
    console = Terminal()
    console.print(
        "[bold]Three hospitals train one breast-cancer classifier; no record leaves a hospital.[/]\n\nStarting every service …",
        soft_wrap=True,
    )
    split = hospitals.load()
    model = {"w": [0.0] * split.features, "b": 0.0}
    options = Options(folder, proplets=len(split.parts), auto_ports=True, extra=_initial_model(model))
    passed = False

    def report(what: str, where: str) -> None:
        console.print(f"  [green]✓[/] {what:<16} [dim]{where}[/]")

    async def body(_stack: dict[str, Any]) -> None:
        nonlocal passed
        passed = await asyncio.to_thread(_Demo(folder, rounds, started_at, split, console).run)

    code = run_on_stack(options, report, body)
    if code == 0:
        console.print(f"\nAll processes have ended. Total time: {time.monotonic() - started_at:.1f} s.")
    return code or (0 if passed else 1)


class _Demo:
    """What the demo does on a running stack."""

    def __init__(
        self, folder: Path, rounds: int, started_at: float, split: hospitals.Split, console: Console
    ) -> None:
        self._folder, self._rounds, self._started_at = folder, rounds, started_at
        self._split, self._console = split, console

    def run(self) -> bool:
        """Whether the federated model reached the accuracy and beat every hospital alone."""
        with Propeller.from_state(self._folder) as fl:
            ids = [fl.stack["clients"][f"proplet-{n}"]["id"] for n in range(1, len(self._split.parts) + 1)]
            self._store_data(fl, ids)
            results = self._train_federated(fl, ids)
            federated = self._accuracy(fl, results[-1]["model_version"])
            alone = self._train_alone(fl, ids)
            self._show_comparison(federated, alone)
            self._show_versions(fl, results)
        self._show_next(results[-1])
        return federated >= hospitals.TARGET_ACCURACY and federated > max(alone)

    def _store_data(self, fl: Propeller, ids: list[str]) -> None:
        self._print(
            f"\n[bold]Each hospital's own records[/] ({len(self._split.held_out[1])} more are held out: no hospital sees them)"
        )
        for proplet_id, name, part in zip(ids, self._split.names, self._split.parts, strict=True):
            fl.put_dataset(proplet_id, part)
            malignant = sum(1 for record in part["data"] if record["y"])
            self._console.print(
                f"  {name:<12} {part['size']:>4} records, {malignant:>3} malignant  [dim]{proplet_id}[/]"
            )

    def _train_federated(self, fl: Propeller, ids: list[str]) -> list[dict[str, Any]]:
        """The rounds of an experiment, as its history has them."""
        self._console.print(f"\n[bold]Federated training[/], {self._rounds} rounds of {EPOCHS} local epochs")
        experiment = Experiment(
            program=fl.image(),
            name="hospitals",
            rounds=self._rounds,
            model=0,
            selection={"names": ids},
            hyperparams=_hyperparams(EPOCHS),
        )
        handle = fl.run(experiment)
        with self._show_updates(len(ids)) as on_update:
            for event in handle.events():
                if event.kind in {"round_started", "update"}:
                    on_update(event.data["number"], event.data.get("updates", 0))
                if event.kind == "round_ended":
                    ended = next(one for one in handle.history() if one["round_id"] == event.data["round_id"])
                    self._show_round(fl, ended, len(ids))
        handle.wait()  # which says why, if it failed
        return list(handle.history())

    def _show_round(self, fl: Propeller, ended: dict[str, Any], participants: int) -> None:
        if ended["state"] != "completed":
            return
        version = ended["model_version"]
        self._print(
            f"  round {ended['number']:>2}  updates {len(ended['updates'])}/{participants}  "
            f"loss {ended['metrics'].get('loss', 0):.4f}  held-out accuracy {self._accuracy(fl, version):.3f}  "
            f"[dim]v{version}, {1000 * ended['seconds']:.0f} ms[/]"
        )
        if ended["number"] == 1:
            self._print(
                f"  [dim]first aggregated model {time.monotonic() - self._started_at:.1f} s after the start[/]"
            )

    def _train_alone(self, fl: Propeller, ids: list[str]) -> list[float]:
        """The same program and as many epochs in all, for each hospital by itself."""
        started = [
            fl.start_round(
                fl.image(),
                participants=[proplet_id],
                hyperparams=_hyperparams(EPOCHS * self._rounds),
                base_version=0,
                timeout_s=120,
            )
            for proplet_id in ids
        ]
        return [self._accuracy(fl, fl.wait_round(round_id).model_version) for round_id in started]

    def _accuracy(self, fl: Propeller, version: int) -> float:
        return hospitals.accuracy(fl.model(version), self._split.held_out)

    def _show_comparison(self, federated: float, alone: list[float]) -> None:
        self._print("\n[bold]Why federate[/]: accuracy on the records that no hospital has")
        table = Table()
        table.add_column("trained by")
        table.add_column("records", justify="right")
        table.add_column("held-out accuracy", justify="right")
        for name, part, accuracy in zip(self._split.names, self._split.parts, alone, strict=True):
            table.add_row(f"{name} alone", str(part["size"]), f"{accuracy:.3f}")
        together = sum(part["size"] for part in self._split.parts)
        table.add_row("[bold]all three, federated[/]", str(together), f"[bold green]{federated:.3f}[/]")
        self._console.print(table)

    def _show_versions(self, fl: Propeller, results: list[dict[str, Any]]) -> None:
        self._print("\n[bold]Model versions[/]")
        table = Table()
        for column in ("version", "from round", "updates", "loss", "held-out accuracy"):
            table.add_column(column, justify="left" if column == "from round" else "right")
        table.add_row("v0", "(initial: zeros)", "", "", f"{self._accuracy(fl, 0):.3f}")
        for result in results:
            table.add_row(
                f"v{result['model_version']}",
                result["round_id"],
                str(len(result["updates"])),
                f"{result['metrics'].get('loss', 0):.4f}",
                f"{self._accuracy(fl, result['model_version']):.3f}",
            )
        self._console.print(table)

    def _show_next(self, last: dict[str, Any]) -> None:
        command = _command()
        self._print(
            "\n[bold]Where to look next[/]\n"
            f"  the last round, in every log:  {command} logs --state {self._folder} --round {last['round_id']}\n"
            f"  rounds of your own:            {command} up   (README: the next ten minutes)\n"
            f"  what ran in each sandbox:      {program_source('logreg')}"
        )

    @contextlib.contextmanager
    def _show_updates(self, participants: int) -> Iterator[Callable[[int, int], None]]:
        """A bar that moves as the updates of a round arrive; called with the round's number and its updates."""
        bar = Progress(
            TextColumn("  round {task.fields[number]:>2}  updates"),
            MofNCompleteColumn(),
            BarColumn(20),
            console=self._console,
            transient=True,
        )
        task = bar.add_task("", total=participants, number=1)

        def on_update(number: int, received: int) -> None:
            bar.update(task, completed=received, number=number)

        with bar if self._console.is_terminal else contextlib.nullcontext():
            yield on_update

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _command() -> str:
    """How a person calls this program: by its name where the shell finds it, else by where it is."""
    if shutil.which("propeller"):
        return "propeller"
    own = Path(sys.executable).with_name("propeller")
    return str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else str(own)


def _hyperparams(epochs: int) -> dict[str, Any]:
    return {"epochs": epochs, "lr": LEARNING_RATE, "batch_size": BATCH_SIZE, "seed": 1}


def _initial_model(model: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {"model-registry": {"REGISTRY_INITIAL_MODEL": json.dumps(model)}}


def _prepare_folder(folder: Path) -> None:
    """Remove what the last demo left, but never a folder that is not a demo's."""
    if StateFolder(folder).running_process() is not None:
        raise StartError(f"a stack already runs on {folder}; stop it, or choose another folder with --state")
    if folder.exists():
        if any(folder.iterdir()) and not _is_demo_folder(folder):
            raise StartError(
                f"{folder} is not a demo's folder, so it is not cleared; choose another with --state"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    (folder / _MARKER_FILE).write_text(_MARKER_TEXT)


def _is_demo_folder(folder: Path) -> bool:
    try:
        return (folder / _MARKER_FILE).read_text() == _MARKER_TEXT
    except OSError:
        return False
