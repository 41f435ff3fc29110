"""One task's own process: forked from the template, it confines itself, runs or compiles one program, and ends.

Its descriptors: 1 and 2 are pipes to the proplet (the program's standard output and error), 3 takes one JSON object that
says how it ended. Nothing of the program's is in the template, so this is the first and last use of the process.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from typing import Any

import wasmtime
from wasmtime import component

from propeller.wasm import guard, guest, values
from propeller.wasm.expose import expose

_RUNTIME_BYTES = 192 * 1024 * 1024
"""Writable memory of the process beside the linear memories: interpreter, runtime, thread stacks, the module's own."""

_RESULT = 3
_KEPT: list[guest.Program] = []
"""What ran, until the process ends: to give its memory back by itself would take a millisecond or two before the report."""
_VALUE_BYTES = 48 * 1024


def main(task_file: str, pipes: list[int], parent: int, nice: int) -> None:
    """Do what the task file says; never returns."""
    code = 1
    try:
        guard.isolate(parent, nice)
        _take_pipes(pipes)
        with open(task_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs memory here
            task = json.load(file)
        report = _compile(task) if task["kind"] == "compile" else _run(task)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report["cpu_s"] = usage.ru_utime + usage.ru_stime
        report["memory_peak_bytes"] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        os.write(_RESULT, json.dumps(report).encode())
        os.close(_RESULT)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here, and says why
        os.write(_RESULT, json.dumps({"error": f"sandbox: {type(error).__name__}: {error}"[:4000]}).encode())
    finally:
        os._exit(code)


def load_tensors() -> bool:
    """Import what programs with the host's tensors need; the template does it before it forks the first of them.

    Returns:
        Whether this was the first time.
    """
    name = "propeller.wasm.host_tensors"
    if name in sys.modules:
        return False
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # tasks run beside each other, and forking wants no threads
    importlib.import_module(name)
    return True


def _take_pipes(pipes: list[int]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    nothing = os.open(os.devnull, os.O_RDONLY)
    raised = [os.dup(fd) for fd in pipes]  # above every target, as the originals may be 1, 2 or 3
    for target, fd in enumerate([nothing, *raised]):
        os.dup2(fd, target)
    os.closerange(_RESULT + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.umask(0o077)


def _compile(task: dict[str, Any]) -> dict[str, Any]:
    limits = task["limits"]
    guard.limit(
        data_bytes=limits["compile_memory_bytes"],
        file_bytes=task["artifact_bytes"],
        cpu_s=int(limits["compile_s"]) * (os.cpu_count() or 1) + 5,
    )
    with open(task["source"], "rb") as file:  # noqa: PTH123
        wasm = file.read()
    target = os.open(task["target"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    guard.confine([], [])
    engine = wasmtime.Engine(guest.config(fuel=task["fuel"]))
    try:
        made = (
            component.Component(engine, wasm) if task["component"] else wasmtime.Module(engine, expose(wasm))
        )
    except wasmtime.WasmtimeError as error:
        return {"error": f"not a valid Wasm program: {guest.cause(error)}"}
    with open(target, "wb") as out:  # noqa: PTH123
        out.write(made.serialize())
        out.flush()
        os.fsync(out.fileno())
    return {"error": None}


def _run(task: dict[str, Any]) -> dict[str, Any]:
    limits = task["limits"]
    guard.limit(
        data_bytes=limits["memory_bytes"]
        + _RUNTIME_BYTES
        + (2 * limits["tensor_bytes"] if task["tensors"] else 0),
        file_bytes=limits["out_bytes"] + 1,  # one more, so that the search of /out sees who went over
        cpu_s=int(limits["wall_time_s"]) + 5,
    )
    os.chdir(task["folder"])
    gc.disable()
    try:
        run = guest.Component(task) if task["component"] else guest.Core(task)
    except wasmtime.WasmtimeError as error:  # made by another build of the runtime, or damaged
        return {"error": f"sandbox: cannot load the compiled program: {guest.cause(error)}", "stale": True}
    _KEPT.append(run)
    guard.confine([task["folder"] + "/in"], [task["folder"] + "/out"])
    report: dict[str, Any] = {"error": None, "limit": None, "exit_code": None, "value": None}
    report["entered"] = begin = time.monotonic()
    try:
        report["value"] = _short(run.call())
        report["exit_code"] = 0
    except wasmtime.ExitTrap as error:
        report["exit_code"] = error.code
        if error.code != 0:
            report["error"], report["limit"] = run.blame(f"the program exited with code {error.code}")
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        report["error"], report["limit"] = run.explain(error)
    except values.CallError as error:
        report["error"] = str(error)
    except Exception as error:
        met = run.quota(error)
        if met is None:
            raise
        report["error"], report["limit"] = met
    report["run_s"] = time.monotonic() - begin
    if limits["fuel"] is not None:
        report["fuel"] = limits["fuel"] - run.store.get_fuel()
    if run.tensors is not None:
        report["tensor_steps"] = run.tensors.steps
    return report


def _short(value: str | None) -> str | None:
    """A result that fits in the report."""
    if value is not None and (size := len(json.dumps(value))) > _VALUE_BYTES:
        raise values.CallError(
            f"the function's result has {size} bytes as text, at most {_VALUE_BYTES} are taken: have the program print it"
        )
    return value
