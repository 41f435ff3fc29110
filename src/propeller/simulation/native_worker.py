"""A worker of a simulation that runs a native program: one client after the other, each in a process of the sandbox as on a device.

This process runs nothing foreign: it has a sandbox of its own, gives it each task, and checks what comes back.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

from propeller.digests import digest_of
from propeller.fl.tensors import from_safetensors, to_json
from propeller.process.parent_death import die_with_parent
from propeller.proplet.errors import TaskError
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.task import encode_json
from propeller.simulation.client_data import ClientData, open_client_data
from propeller.simulation.client_reports import ClientReports, fault_report
from propeller.simulation.messages import (
    ClientReport,
    ClientTask,
    RoundTask,
    WorkerReady,
    WorkerSetup,
    read_message,
    write_message,
)
from propeller.simulation.native_python import find_interpreter
from propeller.wasm.last_words import LastWords
from propeller.wasm.program_run import Limits, ProgramRun, StateFolder
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.task_inputs import TENSORS_FILE, TaskInputs

_LAST_LINE_CHARACTERS = 8192


class NativeWorker:
    """Runs clients' tasks."""

    def __init__(self, setup: WorkerSetup, sandbox: Sandbox, digest: str) -> None:
        """``sandbox`` holds the program of this digest."""
        self._sandbox, self._digest = sandbox, digest
        self._limits = Limits(**setup.limits)
        self._states = Path(setup.states)
        self._data = open_client_data(Path(setup.data))
        self._central = None if setup.central is None else open_client_data(Path(setup.central))
        self._round = RoundTask(-1, {}, evaluates=False, model="", strategy=None, split=None, update={})
        self._inputs = TaskInputs()
        self._reports = ClientReports(self._states, Path(setup.folder) / "compress")

    def begin_round(self, task: RoundTask) -> None:
        """Take over what the clients of a round have in common."""
        self._round = task
        self._reports.begin_round(task)
        self._inputs = TaskInputs()
        model, files = Path(task.model), self._inputs.files
        if model.stat().st_size <= LARGE_BYTES:  # a device has a larger one in safetensors alone
            document = encode_json(to_json(from_safetensors(model.read_bytes())[0]))
            self._inputs.add_document("model.json", "MODEL_DATA", document)
        files["model.safetensors"] = model
        files["hyperparams.json"] = task.env.get("HYPERPARAMS", "{}").encode()
        if task.strategy is not None:
            files["strategy.safetensors"] = Path(task.strategy)

    async def run(self, task: ClientTask) -> tuple[ClientReport, bytes]:
        """Run a client's task."""
        try:
            return await self._run(task)
        except Exception as fault:  # noqa: BLE001 - told where the simulation was started
            return fault_report(task, fault), b""

    async def _run(self, task: ClientTask) -> tuple[ClientReport, bytes]:
        env = {**self._round.env, "PROPLET_ID": task.proplet_id, "FL_SEED": str(task.seed)}
        kept = None if self._round.evaluates else self._states / f"{task.client}-{task.id}"
        stdout, tensors = await self._run_program(task, env, kept)
        report, content = self._reports.read(task, stdout, tensors, env)
        return replace(report, kept=str(kept) if kept is not None and kept.exists() else None), content

    async def _run_program(
        self, task: ClientTask, env: Mapping[str, str], kept: Path | None
    ) -> tuple[bytes, bytes | None]:
        """Its standard output, and the tensors that it left in a file; ``kept`` is then what it keeps.

        Raises:
            TaskError: it failed.
        """
        inputs = TaskInputs(dict(self._inputs.env), dict(self._inputs.files))
        data, client = self._data_of(task)
        inputs.add_document("dataset.json", "DATASET_DATA", data.document(client, self._round.part))
        state = None
        if self._limits.state_bytes:
            state = StateFolder(None if task.state is None else Path(task.state), kept)
        run = ProgramRun(
            str(task.id),
            self._digest,
            env={**env, **inputs.env},
            files=inputs.files,
            limits=self._limits,
            state=state,
        )
        said = LastWords(_LAST_LINE_CHARACTERS)

        def note(line: str) -> None:
            said.add(line)

        outcome = await self._sandbox.run(run, note)
        if outcome.error is not None:
            raise TaskError(f"{outcome.error}: {said.reason}" if said.reason else outcome.error)
        return outcome.stdout, outcome.out_files.get(TENSORS_FILE)

    def _data_of(self, task: ClientTask) -> tuple[ClientData, int]:
        if task.client is not None:
            return self._data, task.client
        if self._central is None:
            raise AssertionError("a central evaluation has data")
        return self._central, 0


async def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Run tasks until there are no more requests."""
    setup = read_message(requests)
    if not isinstance(setup, WorkerSetup) or setup.native_python is None:
        return
    if not die_with_parent(setup.parent):
        return
    folder = Path(setup.folder)
    content = await asyncio.to_thread(Path(setup.artifact).read_bytes)
    native = find_interpreter(Path(setup.native_python), keep_out=[folder])
    digest = digest_of(content)
    async with Sandbox(folder / "sandbox", native=native) as sandbox:
        await sandbox.keep(digest, content, Limits(**setup.limits))
        worker = NativeWorker(setup, sandbox, digest)
        write_message(replies, WorkerReady())
        replies.flush()
        # In a thread: the sandbox goes on meanwhile.
        while (message := await asyncio.to_thread(read_message, requests)) is not None:
            if isinstance(message, RoundTask):
                worker.begin_round(message)
            elif isinstance(message, ClientTask):
                report, update = await worker.run(message)
                write_message(replies, report, update)
                replies.flush()


def main() -> None:
    """Serve the requests at descriptor 0; what is said goes to what was descriptor 1."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # where a log may go
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(serve(sys.stdin.buffer, replies))


if __name__ == "__main__":
    main()
