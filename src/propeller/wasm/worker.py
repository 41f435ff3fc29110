"""One task's own process: forked from the template, it confines itself, runs or compiles one program or calls a function, and ends.

One that is forked before there is a task has loaded the program that ran last (``wait``). Its descriptors: 1 and 2 are pipes to the proplet (the program's standard output and error), 3 takes one ``TaskReport`` that
says how it ended. Nothing of the program's is in the template, so this is the first and last use of the process.
"""

import gc
import importlib
import json
import os
import resource
import socket
import sys
import time
from dataclasses import replace
from typing import NoReturn

import wasmtime
from wasmtime import component

from propeller.errors import InvalidError
from propeller.wasm import confinement, task_process
from propeller.wasm.call_values import CallError
from propeller.wasm.guest_program import (
    Failure,
    GuestProgram,
    Loaded,
    error_cause,
    load_program,
    make_program,
    runtime_config,
)
from propeller.wasm.messages import (
    STATE_WRITABLE,
    CallTask,
    CompiledProgram,
    CompileTask,
    ExecTask,
    RunTask,
    Task,
    TaskReport,
    compiler_seconds,
    compiler_threads,
    decode_task,
    encode,
)
from propeller.wasm.module_exports import export_memories_and_tables
from propeller.wasm.task_process import give_folder, set_limits, use_descriptors
from propeller.wasm.task_users import TaskUser, TaskUsers
from propeller.wasm.template import READY

_CALL_FILES = 4
"""How many times as much as a program a function may write: it widens numbers."""

_RUNTIME_ENV = {"TOKIO_WORKER_THREADS": "1"}
"""For the runtime, never for a program: it starts a thread for each processor where a program first opens a file, and needs one."""

_REPORT_FD = 3
_MAX_NAME_BYTES = 4096
_MAX_VALUE_BYTES = 48 * 1024
_MAX_ERROR_CHARACTERS = 4000


def main(task_file: str, pipes: list[int], parent: int, nice: int, users: TaskUsers) -> NoReturn:
    """Do what the task file says; never returns."""
    try:
        user = confinement.isolate(parent, nice, users)
        use_descriptors([None, *pipes], _RUNTIME_ENV)
    except BaseException as error:  # noqa: BLE001 - the process ends here, and says why
        _exit_with(error)
    _work(task_file, user, None)


def wait(
    control: socket.socket, program: CompiledProgram, parent: int, nice: int, users: TaskUsers
) -> NoReturn:
    """As ``main``, before there is a task: loads a program, then waits for a task that runs it; never returns.

    It says ``READY`` over ``control``; what comes is the name of the task file, once, with its pipes.
    """
    try:
        user = confinement.isolate(parent, nice, users)
        use_descriptors([None, None, None, control.fileno()], _RUNTIME_ENV)
        control.detach()
        control = socket.socket(fileno=_REPORT_FD)
        gc.disable()
        loaded = load_program(program)
        control.send(READY)
        name, pipes, _flags, _address = socket.recv_fds(control, _MAX_NAME_BYTES, 3)
        if not name:  # no task any more
            os._exit(0)
        control.detach()
        for target, fd in enumerate(
            pipes, 1
        ):  # and no other is touched: the runtime may have the program's file open
            os.dup2(fd, target)
            os.close(fd)
        _work(name.decode(), user, loaded)
    finally:  # nobody waits for it: the template forks another
        os._exit(1)


def _work(task_file: str, user: TaskUser, loaded: Loaded | None) -> NoReturn:
    """Do what the task file says and report how it ended; never returns."""
    try:
        with open(task_file, "rb") as file:  # noqa: PTH123 - pathlib costs memory here
            task = decode_task(file.read())
        # The program lives until the process ends: to free it would take a millisecond or two before the report.
        report, _program = _do(task, user, loaded)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report = replace(
            report,
            cpu_s=usage.ru_utime + usage.ru_stime,
            memory_peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )
        os.write(_REPORT_FD, encode(report))
        os.close(_REPORT_FD)
    except BaseException as error:  # noqa: BLE001 - the process ends here, and says why
        _exit_with(error)
    os._exit(0)


def _exit_with(error: BaseException) -> NoReturn:
    try:
        text = f"sandbox: {type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS]
        os.write(_REPORT_FD, encode(TaskReport(text.encode(errors="replace").decode())))
    finally:
        os._exit(1)


def load(module: str) -> bool:
    """Import what a task needs; the template does it before it forks the first that does.

    Returns:
        Whether this was the first time.
    """
    if module in sys.modules:
        return False
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # tasks run beside each other, and forking wants no threads
    importlib.import_module(module)
    return True


def _do(task: Task, user: TaskUser, loaded: Loaded | None) -> tuple[TaskReport, GuestProgram | None]:
    if isinstance(task, CallTask):
        return _call_function(task, user), None
    if isinstance(task, ExecTask):
        _exec(task, user)
    return _compile(task, user) if isinstance(task, CompileTask) else _run(task, user, loaded)


def _call_function(task: CallTask, user: TaskUser) -> TaskReport:
    limits = task.limits
    set_limits(
        user,
        limits,
        data_bytes=limits.process_bytes(host_tensors=True),
        file_bytes=_CALL_FILES * limits.out_bytes,
        cpu_s=int(limits.wall_time_s) * (os.cpu_count() or 1) + 5,
        threads=limits.threads,
    )
    os.chdir(task.folder)
    function = getattr(importlib.import_module(task.module), task.function)
    give_folder(task.folder, user)
    confinement.confine([task.folder + "/in"], [task.folder + "/out"], user)
    try:
        return TaskReport(value=_bounded(function(task.argument)))
    except InvalidError as error:
        return TaskReport(str(error))
    except MemoryError:
        return TaskReport(limits.error("tensor_bytes"), "tensor_bytes")


def _exec(task: ExecTask, user: TaskUser) -> NoReturn:
    """Become the interpreter of a native program, which confines itself before it loads that (``native/guest.py``)."""
    user = task_process.enter_native(task, user)
    document = os.memfd_create("task")
    with open(document, "wb", closefd=False) as file:
        file.write(task.document.encode())
    os.lseek(document, 0, os.SEEK_SET)
    os.dup2(document, _REPORT_FD)
    os.close(document)
    confinement.give_up_rights(user)  # here: what is run has none that this process has
    os.execve(task.command[0], task.command, task.env)  # noqa: S606 - the owner's interpreter


def _compile(task: CompileTask, user: TaskUser) -> tuple[TaskReport, None]:
    set_limits(
        user,
        task.limits,
        data_bytes=task.limits.compile_memory_bytes,
        file_bytes=task.max_bytes,
        cpu_s=compiler_seconds(task.limits),
        threads=compiler_threads(task.limits),
    )
    with open(task.source, "rb") as file:  # noqa: PTH123
        wasm = file.read()
    target = os.open(task.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    confinement.confine([], [], user)
    engine = wasmtime.Engine(runtime_config(fuel=task.fuel))
    try:
        compiled = (
            component.Component(engine, wasm)
            if task.component
            else wasmtime.Module(engine, export_memories_and_tables(wasm))
        )
    except wasmtime.WasmtimeError as error:
        return TaskReport(f"not a valid Wasm program: {error_cause(error)}"), None
    with open(target, "wb") as out:  # noqa: PTH123
        out.write(compiled.serialize())
        out.flush()
        os.fsync(out.fileno())
    return TaskReport(), None


def _run(task: RunTask, user: TaskUser, loaded: Loaded | None) -> tuple[TaskReport, GuestProgram | None]:
    limits = task.limits
    set_limits(
        user,
        limits,
        data_bytes=limits.process_bytes(host_tensors=task.host_tensors),
        # One more, so that the search of /out and /state sees who went over.
        file_bytes=max(limits.out_bytes, limits.state_bytes if task.state else 0) + 1,
        cpu_s=int(limits.wall_time_s) + 5,
        threads=limits.threads,
    )
    os.chdir(task.folder)
    gc.disable()
    try:
        program = make_program(task, loaded or load_program(task.program))
    except wasmtime.WasmtimeError as error:  # compiled by another build of the runtime, or damaged
        text = f"sandbox: cannot load the compiled program: {error_cause(error)}"
        return TaskReport(text, stale=True), None
    readable, writable = [task.folder + "/in"], [task.folder + "/out"]
    if task.state:
        (writable if task.state == STATE_WRITABLE else readable).append(task.folder + "/state")
    give_folder(task.folder, user)
    confinement.confine(readable, writable, user)
    entered = time.monotonic()
    report = call_program(program)
    report = replace(
        report,
        entered_s=entered,
        run_s=time.monotonic() - entered,
        fuel=None if limits.fuel is None else limits.fuel - program.store.get_fuel(),
        tensor_steps=None if program.tensors is None else program.tensors.steps,
    )
    return report, program


def call_program(program: GuestProgram) -> TaskReport:
    """Run a program; never raises for what it does."""
    try:
        return TaskReport(exit_code=0, value=_bounded(program.call()))
    except wasmtime.ExitTrap as error:
        if error.code == 0:
            return TaskReport(exit_code=0)
        failure = program.blame(f"the program exited with code {error.code}")
        return TaskReport(failure.error, failure.limit, exit_code=error.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        failure = program.explain(error)
    except CallError as error:
        failure = Failure(str(error))
    except Exception as error:
        exceeded = program.exceeded_quota(error)
        if exceeded is None:
            raise
        failure = exceeded
    return TaskReport(failure.error, failure.limit)


def _bounded(value: str | None) -> str | None:
    """A result that fits in the report."""
    if value is not None and (size := len(json.dumps(value))) > _MAX_VALUE_BYTES:
        raise CallError(
            f"the function's result has {size} bytes as text, at most {_MAX_VALUE_BYTES} are taken: have the program print it"
        )
    return value
