"""A worker of a simulation: a confined process that keeps a compiled program, and runs it afresh for one client after the other.

A client costs no process, and for a program with the host's tensors no file and no JSON: model and data are given to it as arrays. What a
program leaves is checked here as a proplet and a coordinator check it, so that it counts in a simulation if and only if it counts on a
fleet. The process is confined once, as a task's process is; a program sees its own folder alone, which is emptied between clients.
"""

import base64
import contextlib
import functools
import gc
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO

import wasmtime
from cachetools import LRUCache

from propeller.fl.tensors import from_safetensors, to_json
from propeller.protocol.task import encode_json
from propeller.simulation.client_data import ClientData, Part, open_client_data
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
from propeller.tensors.files import Source
from propeller.tensors.numpy_machine import ArrayFiles
from propeller.tensors.routine import Routine
from propeller.wasm import confinement, folder_contents
from propeller.wasm.guest_program import error_cause, load_program, make_program
from propeller.wasm.host_tensors import Given
from propeller.wasm.instance_pool import pool_bytes
from propeller.wasm.last_words import LastWords, tells_of_memory
from propeller.wasm.layers import inputs_of
from propeller.wasm.messages import STATE_READABLE, STATE_WRITABLE, CompiledProgram, RunTask
from propeller.wasm.outcome import bounded_folders
from propeller.wasm.program_run import MIB, Limits, ProgramRun, StateFolder
from propeller.wasm.task_inputs import MAX_ENV_BYTES, TENSORS_FILE
from propeller.wasm.worker import call_program

_RUNTIME_BYTES = 256 * MIB
"""Writable memory of the process beside what a task may take: interpreter, runtime, compiled program."""

_KEPT_ROUTINES = 256
_NO_BOUND = 2**31
_NICE = 5
_LAST_LINE_BYTES = 8192
_LAST_BYTES = 64 * 1024
_DOCUMENTS = (b"dataset.json", b"model.json", b"DATASET_DATA", b"MODEL_DATA")
"""What a program's last words name that wanted its inputs as documents."""


class ClientWorker:
    """Runs clients' tasks."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Load the program and map the data, in a process that is not confined yet."""
        self._folder = Path(setup.folder)
        self._limits = Limits(**setup.limits)
        self._dataset_file = self._folder / "in" / "dataset.json"
        self._states = Path(setup.states)
        run = ProgramRun("", "", limits=self._limits, state=StateFolder(None, self._states))
        self._bounded = bounded_folders(run, self._folder)
        self._program = CompiledProgram(setup.artifact, setup.component, self._limits.fuel is not None)
        self._host_tensors = setup.host_tensors
        self._layer_env, self._layer_files = (
            ({}, {}) if setup.layer is None else inputs_of(base64.b64decode(setup.layer))
        )
        self._with_documents = not setup.host_tensors
        self._loaded = load_program(self._program, pool=self._limits)
        self._data = open_client_data(Path(setup.data))
        self._central = None if setup.central is None else open_client_data(Path(setup.central))
        self._round = RoundTask(-1, {}, evaluates=False, model="", strategy=None, split=None, update={})
        self._sources: dict[str, Source] = {}
        self._model_json = b""
        self._part: Part | None = None
        self._written: set[str] = set()
        self._reports = ClientReports(self._states, self._folder / "compress")
        self._routines: LRUCache[str, Routine] = LRUCache(_KEPT_ROUTINES)

    def begin_round(self, task: RoundTask) -> None:
        """Take over what the clients of a round have in common."""
        self._round = task
        self._reports.begin_round(task)
        self._sources = {"model": _packed(task.model)}
        self._model_json = b""
        if task.strategy is not None:
            self._sources["strategy"] = _packed(task.strategy)
        self._part = task.part
        self._clear("in")
        for name, content in self._layer_files.items():
            (self._folder / "in" / name).write_bytes(content)
        if task.strategy is not None:  # Python programs look whether it is there
            (self._folder / "in" / "strategy.safetensors").write_bytes(Path(task.strategy).read_bytes())
        if self._with_documents:
            self._give_round_files()

    def run(self, task: ClientTask) -> tuple[ClientReport, bytes]:
        """Run a client's task."""
        try:
            return self._run(task)
        except Exception as fault:  # noqa: BLE001 - told where the simulation was started
            return fault_report(task, fault), b""
        finally:
            self._clear_written()

    def _run(self, task: ClientTask) -> tuple[ClientReport, bytes]:
        env = {**self._round.env, "PROPLET_ID": task.proplet_id, "FL_SEED": str(task.seed)}
        error, stdout = self._run_program(task, env)
        if error is not None and not self._with_documents and self._wanted_documents():
            # It reads its inputs itself: once more, and from now on, with everything that a device gives.
            self._with_documents = True
            self._give_round_files()
            error, stdout = self._run_program(task, env)
        if error is not None:
            return ClientReport(task.id, error=error), b""
        tensors = None
        if "out" in self._written and (file := self._folder / "out" / TENSORS_FILE).exists():
            tensors = file.read_bytes()
        report, content = self._reports.read(task, stdout, tensors, env)
        return replace(report, kept=self._keep_state(task)), content

    def _run_program(self, task: ClientTask, env: dict[str, str]) -> tuple[str | None, bytes]:
        """Run the program once; why it failed, and its standard output."""
        self._clear_written()
        self._written = {"out", "state"}  # until it is known
        if task.state is not None:
            folder_contents.copy(Path(task.state), self._folder / "state")
        given = None
        if self._host_tensors:
            data, client = self._data_of(task)
            sources = {**self._sources, "data": data.source(client, self._part)}
            given = Given(sources, self._routines)
        if self._with_documents:
            env = {**env, **self._give_documents(task)}
        for descriptor in (1, 2):
            os.ftruncate(descriptor, 0)
        run_task = RunTask(
            folder=str(self._folder),
            program=self._program,
            host_tensors=self._host_tensors,
            env={**env, **self._layer_env},
            args=(),
            export=None,
            inputs=(),
            limits=self._limits,
            state=STATE_READABLE if self._round.evaluates else STATE_WRITABLE,
        )
        try:
            program = make_program(run_task, self._loaded, given)
        except wasmtime.WasmtimeError as fault:
            return f"sandbox: cannot start the program: {error_cause(fault)}", b""
        try:
            report = call_program(program)
        finally:
            program.store.close()
        stdout = _content(1, self._limits.stdout_bytes + 1)
        exceeded = "stdout_bytes" if len(stdout) > self._limits.stdout_bytes else None
        written = [each for each in self._bounded if folder_contents.has_entries(each.folder)]
        self._written = {each.name for each in written}
        for bounded in written:
            exceeded = exceeded or folder_contents.exceeded_limit(
                bounded.name, bounded.folder, bounded.max_bytes, bounded.max_files
            )
        error = report.error if exceeded is None else self._limits.error(exceeded)
        if error is None:
            for bounded in written:
                folder_contents.keep_files(bounded.name, Path(bounded.folder))
            return None, stdout
        said = _last_words()
        if exceeded is None and report.limit is None and tells_of_memory(said):
            error = f"{self._limits.error('memory_bytes')} ({error})"  # as a device's sandbox names it
        return (f"{error}: {said}" if said else error), stdout

    def _data_of(self, task: ClientTask) -> tuple[ClientData, int]:
        if task.client is not None:
            return self._data, task.client
        if self._central is None:
            raise AssertionError("a central evaluation has data")
        return self._central, 0

    def _wanted_documents(self) -> bool:
        words = _content(2, _LAST_LINE_BYTES)
        return any(name in words for name in _DOCUMENTS)

    # The program's files ---------------------------------------------------------------------------------------

    def _give_round_files(self) -> None:
        """The model as documents, for a program that reads it itself."""
        content = Path(self._round.model).read_bytes()
        self._model_json = encode_json(to_json(from_safetensors(content)[0]))
        into = self._folder / "in"
        (into / "model.safetensors").write_bytes(content)
        (into / "model.json").write_bytes(self._model_json)
        (into / "hyperparams.json").write_text(self._round.env.get("HYPERPARAMS", "{}"))

    def _give_documents(self, task: ClientTask) -> dict[str, str]:
        """A client's data as a document; the variables that go with small ones, as ``TaskInputs.add_document``."""
        data, client = self._data_of(task)
        dataset = data.document(client, self._part)
        self._dataset_file.write_bytes(dataset)
        documents = {"MODEL_DATA": self._model_json, "DATASET_DATA": dataset}
        return {name: text.decode() for name, text in documents.items() if len(text) < MAX_ENV_BYTES}

    def _keep_state(self, task: ClientTask) -> str | None:
        """Keep what is in ``/state`` under a name of its own; whether it counts, the simulation decides."""
        if self._round.evaluates or "state" not in self._written:
            return None
        kept = self._states / f"{task.client}-{task.id}"
        kept.mkdir(mode=0o700)
        folder_contents.copy(self._folder / "state", kept)
        return str(kept)

    def _clear_written(self) -> None:
        for name in self._written:
            self._clear(name)
        self._written = set()

    def _clear(self, name: str) -> None:
        folder = self._folder / name
        if folder_contents.has_entries(folder):
            folder_contents.remove(folder)
            folder.mkdir(mode=0o700)


def _packed(file: str) -> Source:
    """The tensors of a file, each of which is read once: programs share them, and change none."""
    found = ArrayFiles(Path()).packed(Path(file))
    return {name: (spec, functools.cache(read)) for name, (spec, read) in found.items()}


def _content(descriptor: int, most: int) -> bytes:
    return os.pread(descriptor, min(os.fstat(descriptor).st_size, most), 0)


def _last_words() -> str:
    size = os.fstat(2).st_size
    words = LastWords(_LAST_LINE_BYTES)
    for line in os.pread(2, _LAST_BYTES, max(0, size - _LAST_BYTES)).decode(errors="replace").splitlines():
        words.add(line)
    return words.reason


def _confine(setup: WorkerSetup) -> None:
    limits = Limits(**setup.limits)
    confinement.set_limits(
        data_bytes=limits.memory_bytes
        + 2 * limits.tensor_bytes
        + pool_bytes(limits.table_elements)
        + _RUNTIME_BYTES,
        file_bytes=max(limits.out_bytes, limits.state_bytes, limits.stdout_bytes) + 1,
        cpu_s=_NO_BOUND,
    )
    readable = [setup.data, setup.models, *([] if setup.central is None else [setup.central])]
    confinement.confine(readable, [setup.folder, setup.states])


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Run tasks until there are no more requests."""
    setup = read_message(requests)
    if not isinstance(setup, WorkerSetup):
        return
    confinement.isolate(setup.parent, _NICE)
    worker = ClientWorker(setup)
    folder = Path(setup.folder)
    os.chdir(folder)
    for descriptor in (1, 2):  # in memory: to write a file anew costs more than many a program
        file = os.memfd_create("output")
        os.dup2(file, descriptor)
        os.close(file)
    for name in ("in", "out", "state"):
        (folder / name).mkdir(mode=0o700)
    _confine(setup)
    gc.freeze()
    write_message(replies, WorkerReady())
    replies.flush()
    while (message := read_message(requests)) is not None:
        if isinstance(message, RoundTask):
            worker.begin_round(message)
        elif isinstance(message, ClientTask):
            report, content = worker.run(message)
            write_message(replies, report, content)
            replies.flush()


def main() -> None:
    """Serve the requests at descriptor 0; what is said goes to what was descriptor 1."""
    replies = os.fdopen(os.dup(1), "wb")
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
