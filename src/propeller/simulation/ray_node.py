"""What runs on a node of a Ray cluster: an actor that keeps worker processes there, as a simulation does on its own machine."""

import contextlib
import importlib.metadata
import platform
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.simulation.client_data import ClientData
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask
from propeller.simulation.programs import Program
from propeller.simulation.scratch_folder import scratch_folder
from propeller.simulation.workers import SharedFolders, WorkerPool, workers_folder
from propeller.wasm import folder_contents
from propeller.wasm.program_run import Limits

Content = npt.NDArray[np.uint8]
"""Bytes of a file, shape [size]: nodes map an array where it is, and copy bytes."""

Folder = Mapping[str, bytes | None]
"""The files of a folder by their paths in it; ``None`` is a folder."""

_KEPT_FILES = 8
"""Models and server states of rounds that a node keeps when no task uses them."""


@dataclass(frozen=True)
class Kept:
    """What a client keeps from one round to the next: what is in its ``/state``, and what its compressed updates have left out."""

    state: Folder | None = None
    residual: bytes | None = None


def versions() -> dict[str, str]:
    """What decides about the bits of a result, beside the program."""
    return {name: importlib.metadata.version(name) for name in ("propeller", "numpy")} | {
        "machine": platform.machine()
    }


class NodeWorkers:
    """The worker processes of a node. Its methods are called in threads, beside each other."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._resources = contextlib.ExitStack()
        self._pool: WorkerPool | None = None
        self._states = Path()
        self._files: RoundFiles | None = None

    def versions(self) -> dict[str, str]:
        """As the function of this name."""
        return versions()

    def prepare(
        self,
        program: Program,
        data: ClientData,
        central: ClientData | None,
        limits: Mapping[str, Any],
        count: int,
    ) -> None:
        """Compile the program here, and have so many workers."""
        folder = self._resources.enter_context(scratch_folder())
        bounds = Limits(**limits)
        models = folder / "models"
        models.mkdir()
        shared = SharedFolders.fill(folder, models, data, central)
        self._states, self._files = shared.states, RoundFiles(shared.models)
        own = self._resources.enter_context(workers_folder(folder, bounds, count))
        pool = WorkerPool(program.compile(bounds), shared, own, bounds, count)
        self._pool = self._resources.enter_context(pool)

    def run(
        self,
        round_task: RoundTask,
        tasks: Sequence[ClientTask],
        kept: Mapping[int, Kept],
        model: Content,
        strategy: Content | None,
    ) -> list[tuple[ClientReport, bytes, Kept]]:
        """Have one worker run tasks of a round.

        Args:
            round_task: the files that it names are made here.
            tasks: of the round; the files that they name are not looked at.
            kept: what clients have kept, by the task's id.
            model: the content of the round's file of this name.
            strategy: likewise.

        Returns:
            Reports, which name no files, with their updates and with what each client keeps now.
        """
        if self._pool is None or self._files is None:
            raise AssertionError("a node is prepared before it runs anything")
        contents = {round_task.model: model}
        if round_task.strategy is not None and strategy is not None:
            contents[round_task.strategy] = strategy
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(self._files.using(contents))
            here = replace(
                round_task,
                model=files[round_task.model],
                strategy=None if round_task.strategy is None else files[round_task.strategy],
            )
            given = [stack.enter_context(self._give(task, kept.get(task.id, Kept()))) for task in tasks]
            found = self._pool.submit(here, given).result()
            return [
                (replace(report, kept=None, residual=None), update, _take(report)) for report, update in found
            ]

    def close(self) -> None:
        """End what runs, and remove everything."""
        if self._pool is not None:
            self._pool.abort()
        self._resources.close()

    @contextlib.contextmanager
    def _give(self, task: ClientTask, kept: Kept) -> Iterator[ClientTask]:
        """The task with what its client has kept, in files of this node."""
        state, residual = self._states / f"given-{task.id}", self._states / f"given-{task.id}.residual"
        if kept.state is not None:
            write_folder(state, kept.state)
        if kept.residual is not None:
            residual.write_bytes(kept.residual)
        try:
            yield replace(
                task,
                state=None if kept.state is None else str(state),
                residual=None if kept.residual is None else str(residual),
            )
        finally:
            folder_contents.remove(state)
            residual.unlink(missing_ok=True)


def _take(report: ClientReport) -> Kept:
    """What a client keeps now, from files that are removed."""
    state = residual = None
    if report.kept is not None:
        state = read_folder(Path(report.kept))
        folder_contents.remove(Path(report.kept))
    if report.residual is not None:
        residual = Path(report.residual).read_bytes()
        Path(report.residual).unlink()
    return Kept(state, residual)


class RoundFiles:
    """Files of rounds, made when a task needs them; the last few stay for the next ones."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is nobody else's."""
        self._folder = folder
        self._lock = threading.Lock()
        self._users: OrderedDict[str, int] = OrderedDict()

    @contextlib.contextmanager
    def using(self, contents: Mapping[str, Content]) -> Iterator[dict[str, str]]:
        """The files with these contents, by the names that they have elsewhere."""
        found = {name: self._folder / Path(name).name for name in contents}
        with self._lock:
            for name, content in contents.items():
                if name not in self._users:
                    found[name].write_bytes(content.data)
                self._users[name] = self._users.get(name, 0) + 1
                self._users.move_to_end(name)
        try:
            yield {name: str(file) for name, file in found.items()}
        finally:
            with self._lock:
                for name in contents:
                    self._users[name] -= 1
                free = [name for name, users in self._users.items() if not users]
                for name in free[: max(0, len(self._users) - _KEPT_FILES)]:
                    del self._users[name]
                    (self._folder / Path(name).name).unlink()


def read_folder(folder: Path) -> Folder:
    """The content of a folder that has files and folders alone."""
    return {
        str(each.relative_to(folder)): None if each.is_dir() else each.read_bytes()
        for each in sorted(folder.rglob("*"))
    }


def write_folder(folder: Path, content: Folder) -> None:
    """Make a folder with the content of another one."""
    folder.mkdir(mode=0o700)
    for name, found in content.items():  # a folder comes before what is in it
        if found is None:
            (folder / name).mkdir(mode=0o700)
        else:
            (folder / name).write_bytes(found)
