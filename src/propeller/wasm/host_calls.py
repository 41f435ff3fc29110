"""Work of the proplet's own that is done as tasks are: in a confined process, forked from the template, that ends with it.

What such work needs (NumPy, and memory for tensors) would otherwise stay in the proplet.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from propeller.errors import InvalidError
from propeller.wasm import folder_contents
from propeller.wasm.compiler import write_task
from propeller.wasm.messages import CallTask
from propeller.wasm.output import DISCARD
from propeller.wasm.program_run import Limits
from propeller.wasm.task_folders import TaskFolders
from propeller.wasm.template_client import ProcessEnd, TemplateClient

_TASK_FILE = "task.json"


class HostCallError(InvalidError):
    """The function refused what it was given, or its process was ended."""


@dataclass(frozen=True)
class HostCall:
    """A function to be called.

    Attributes:
        module, function: name it; it takes a text and gives one, and raises ``InvalidError``.
        argument: the text.
        files: that it can read in ``in/``: contents, or paths of files that must not change meanwhile.
        limits: of its process.
    """

    module: str
    function: str
    argument: str
    files: Mapping[str, bytes | Path]
    limits: Limits


@dataclass(frozen=True)
class HostAnswer:
    """What a function gave back: a text, and the folder that it wrote to as ``out/``."""

    value: str
    out: Path


class HostCalls:
    """Calls functions in processes of their own."""

    def __init__(self, template: TemplateClient, folders: TaskFolders) -> None:
        """``template`` forks the processes, ``folders`` has theirs."""
        self._template, self._folders = template, folders
        self._one = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def call(self, call: HostCall) -> AsyncIterator[HostAnswer]:
        """Call a function, one at a time; what it wrote is there, to be read or moved, until the block ends.

        Raises:
            HostCallError: the function refused, or its process was ended; the text says why.
            SandboxError: there is no template.
            OSError: the disk is full, or there are no more descriptors.
        """
        async with self._one, self._called(call) as answer:
            yield answer

    @contextlib.asynccontextmanager
    async def _called(self, call: HostCall) -> AsyncIterator[HostAnswer]:
        folder = self._folders.new()
        task = CallTask(str(folder), call.module, call.function, call.argument, call.limits)
        try:
            await asyncio.to_thread(_create_folder, folder, call.files, task)
            process = self._template.start(
                folder / _TASK_FILE,
                call.limits.wall_time_s,
                call.limits,
                stdout=DISCARD,
                stderr=DISCARD,
                module=call.module,
            )
            try:
                end = await process.ended()
            except asyncio.CancelledError:
                process.kill()
                raise
            value = _value(end, call.limits)
            folder_contents.keep_files("out", folder / "out")
            yield HostAnswer(value, folder / "out")
        finally:
            await asyncio.to_thread(folder_contents.remove, folder)


def _create_folder(folder: Path, files: Mapping[str, bytes | Path], task: CallTask) -> None:
    folder_contents.create(folder, files)
    write_task(folder / _TASK_FILE, task)


def _value(end: ProcessEnd, limits: Limits) -> str:
    """What the function gave back.

    Raises:
        HostCallError: nothing.
    """
    report = end.report
    if report is not None and report.error is None and report.value is not None:
        return report.value
    if end.reason in vars(limits):
        raise HostCallError(limits.error(end.reason))
    if report is not None and report.error is not None:
        raise HostCallError(report.error)
    raise HostCallError(f"its process ended with status {end.status} (is the device out of memory?)")
