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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wasmtime
from wasmtime import component

from propeller.wasm import guard, values
from propeller.wasm.expose import expose
from propeller.wasm.job import over

if TYPE_CHECKING:
    from propeller.wasm.host_tensors import HostTensors

STACK_BYTES = 2 * 1024 * 1024
"""The program's call stack; 4 MiB makes the runtime abort."""

_RUNTIME_BYTES = 192 * 1024 * 1024
"""Writable memory of the process beside the linear memories: interpreter, runtime, thread stacks, the module's own."""

_RESULT = 3


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


def config(*, fuel: bool) -> wasmtime.Config:
    """The runtime's configuration; what changes here changes the cache's key (see ``cache.py``)."""
    made = wasmtime.Config()
    made.max_wasm_stack = STACK_BYTES
    made.consume_fuel = fuel
    return made


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
    engine = wasmtime.Engine(config(fuel=task["fuel"]))
    try:
        made = (
            component.Component(engine, wasm) if task["component"] else wasmtime.Module(engine, expose(wasm))
        )
    except wasmtime.WasmtimeError as error:
        return {"error": f"not a valid Wasm program: {_cause(error)}"}
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
        run = _Component(task) if task["component"] else _Core(task)
    except wasmtime.WasmtimeError as error:  # made by another build of the runtime, or damaged
        return {"error": f"sandbox: cannot load the compiled program: {_cause(error)}", "stale": True}
    guard.confine([task["folder"] + "/in"], [task["folder"] + "/out"])
    report: dict[str, Any] = {"error": None, "limit": None, "exit_code": None, "value": None}
    report["entered"] = begin = time.monotonic()
    try:
        report["value"] = run.call()
        report["exit_code"] = 0
    except wasmtime.ExitTrap as error:
        report["exit_code"] = error.code
        if error.code != 0:
            report["error"], report["limit"] = run.blame(f"the program exited with code {error.code}")
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        report["error"], report["limit"] = run.explain(error)
    except values.CallError as error:
        report["error"] = str(error)
    except Exception:
        met = run.quota()
        if met is None:
            raise
        report["error"], report["limit"] = met
    report["run_s"] = time.monotonic() - begin
    if limits["fuel"] is not None:
        report["fuel"] = limits["fuel"] - run.store.get_fuel()
    if run.tensors is not None:
        report["tensor_steps"] = run.tensors.steps
    return report


class _Program:
    """What core modules and components share: the store with its limits and what WASI lets them see."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.limits = task["limits"]
        self.tensors: HostTensors | None = None
        self.began_with = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.engine = wasmtime.Engine(config(fuel=self.limits["fuel"] is not None))
        self.store = wasmtime.Store(self.engine)
        self.store.set_limits(
            memory_size=self.limits["memory_bytes"],
            table_elements=self.limits["table_elements"],
            instances=256,
            tables=64,
            memories=16,
        )
        if self.limits["fuel"] is not None:
            self.store.set_fuel(self.limits["fuel"])
        wasi = wasmtime.WasiConfig()
        wasi.argv = ["program", *task["args"]]
        wasi.env = list(task["env"].items())
        wasi.stdout_file = "/proc/self/fd/1"
        wasi.stderr_file = "/proc/self/fd/2"
        wasi.preopen_dir("in", "/in", fs_mutable=False)
        wasi.preopen_dir("out", "/out")
        self.store.set_wasi(wasi)

    def explain(self, error: wasmtime.Trap | wasmtime.WasmtimeError) -> tuple[str, str | None]:
        """The error's text and the limit behind it."""
        if (met := self.quota()) is not None:
            return met
        cause = _cause(error)
        if "all fuel consumed" in cause:
            return over("fuel", self.limits["fuel"], "instructions"), "fuel"
        if "call stack exhausted" in cause:
            return over("stack_bytes", STACK_BYTES), "stack_bytes"
        if "exceeds memory limits" in cause:
            return f"{over('memory_bytes', self.limits['memory_bytes'])} ({cause})", "memory_bytes"
        if "exceeds table limits" in cause:
            return (
                f"{over('table_elements', self.limits['table_elements'], 'elements')} ({cause})",
                "table_elements",
            )
        return self.blame(f"the program failed: {cause}")

    def quota(self) -> tuple[str, str | None] | None:
        """The error and the limit of tensors that it went over, if it did."""
        return None if self.tensors is None else self.tensors.limit()

    def blame(self, text: str) -> tuple[str, str | None]:
        """Name the limit that most likely made the program fail.

        A refused ``memory.grow`` only returns -1 to the program, which then fails in its own way; so a program that
        failed with half or more of a limit taken (allocators double) is said to have met it.
        """
        for limit, taken in self.taken():
            if taken >= self.limits[limit] / 2:
                unit = "elements" if limit == "table_elements" else ""
                return f"{over(limit, self.limits[limit], unit)} (had {taken} when {text})", limit
        return text, None

    def taken(self) -> list[tuple[str, int]]:
        """How much of the limits is taken, as far as can be seen."""
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.began_with
        return [("memory_bytes", grown)]


class _Core(_Program):
    """A core module with WASI preview 1."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        self.module = wasmtime.Module.deserialize_file(self.engine, task["artifact"])
        self.linker = wasmtime.Linker(self.engine)
        self.linker.define_wasi()
        self.seen: list[wasmtime.Memory | wasmtime.Table] = []

    def call(self) -> str | None:
        exports = self.linker.instantiate(self.store, self.module).exports(self.store)
        self.seen = [item for item in exports.values() if isinstance(item, wasmtime.Memory | wasmtime.Table)]
        wanted = self.task["export"]
        names = ["_start", "main", "run"]
        if wanted and wanted != "_start":
            names = [wanted, "main", "run", "_start"]
        found = {name: item for name in names if isinstance(item := exports.get(name), wasmtime.Func)}
        if not found:
            raise values.CallError(f"the program exports no function named {' or '.join(names)}")
        name, function = next(iter(found.items()))
        kind = function.type(self.store)
        arguments = values.read([str(each) for each in kind.params], self.task["inputs"])
        initialize = exports.get("_initialize")
        if isinstance(initialize, wasmtime.Func) and name != "_start":
            initialize(self.store)
        result = function(self.store, *arguments)
        kinds = [str(each) for each in kind.results]
        return values.write(kinds[0], result[0] if len(kinds) > 1 else result) if kinds else None

    def taken(self) -> list[tuple[str, int]]:
        found = super().taken()
        for item in self.seen:
            if isinstance(item, wasmtime.Memory):
                found.append(("memory_bytes", item.data_len(self.store)))
            else:
                found.append(("table_elements", item.size(self.store)))
        return found


class _Component(_Program):
    """A component that exports ``wasi:cli/run``."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        self.program = component.Component.deserialize_file(self.engine, task["artifact"])
        self.linker = component.Linker(self.engine)
        self.linker.add_wasip2()
        if task["tensors"]:
            from propeller.wasm.host_tensors import HostTensors

            self.tensors = HostTensors(Path(task["folder"]), self.limits)
            self.tensors.define(self.linker)

    def call(self) -> None:
        instance = self.linker.instantiate(self.store, self.program)
        for version in ("0.2.0", *(f"0.2.{n}" for n in range(1, 16))):
            place = instance.get_export_index(self.store, f"wasi:cli/run@{version}")
            index = place and instance.get_export_index(self.store, "run", place)
            function = index and instance.get_func(self.store, index)
            if function:
                break
        else:
            raise values.CallError("the component does not export wasi:cli/run@0.2")
        result = function(self.store)
        if getattr(result, "tag", "ok") != "ok":
            raise values.CallError("the program exited with code 1")


def _cause(error: Exception) -> str:
    """The innermost reason of a runtime error, on one line."""
    text = str(error)
    cause = text.rsplit("Caused by:", 1)[-1].strip().splitlines()
    reason = " ".join(line.strip() for line in cause)
    return reason[:1000]
