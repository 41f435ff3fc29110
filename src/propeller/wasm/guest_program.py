"""A program in its task's process: what WASI lets it see, how it is called, and why it failed."""

import resource
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import wasmtime
from wasmtime import component

from propeller.wasm.call_values import (
    CallError,
    component_arguments,
    component_result,
    core_arguments,
    core_result,
)
from propeller.wasm.instance_pool import MAX_INSTANCES, MAX_MEMORIES, MAX_TABLES, use_pool
from propeller.wasm.messages import STATE_WRITABLE, CompiledProgram, RunTask
from propeller.wasm.program_run import Limits, limit_error

if TYPE_CHECKING:
    from propeller.wasm.host_tensors import Given, HostTensors

_STACK_BYTES = 2 * 1024 * 1024
"""The program's call stack; 4 MiB makes the runtime abort."""


def runtime_config(*, fuel: bool) -> wasmtime.Config:
    """The runtime's configuration; what changes here changes the cache's key (see ``program_cache.py``)."""
    config = wasmtime.Config()
    config.max_wasm_stack = _STACK_BYTES
    config.consume_fuel = fuel
    return config


@dataclass(frozen=True)
class Failure:
    """Why a program failed, and the limit behind it, if it was one."""

    error: str
    limit: str | None = None


class LoadedModule:
    """A compiled core module, and what WASI preview 1 gives it. Nothing of it has run."""

    def __init__(self, engine: wasmtime.Engine, artifact: str) -> None:
        self.code = wasmtime.Module.deserialize_file(engine, artifact)
        self.linker = wasmtime.Linker(engine)
        self.linker.define_wasi()


class LoadedComponent:
    """A compiled component, and what WASI 0.2 gives it. Nothing of it has run."""

    def __init__(self, engine: wasmtime.Engine, artifact: str) -> None:
        self.code = component.Component.deserialize_file(engine, artifact)
        self.linker = component.Linker(engine)
        self.linker.add_wasip2()
        self._tensors: HostTensors | None = None
        self._defined: object = None

    def use_tensors(self, tensors: "HostTensors") -> None:
        """Give the host's tensors to what is instantiated; those of one task at a time."""
        if self._tensors is None:
            from propeller.wasm.host_tensors import define_tensors

            self._defined = define_tensors(self.linker, self._current_tensors)
        self._tensors = tensors

    def _current_tensors(self) -> "HostTensors":
        if self._tensors is None:
            raise AssertionError("a program runs with the tensors that it was given")
        return self._tensors


Loaded = LoadedModule | LoadedComponent


def load_program(program: CompiledProgram, *, pool: Limits | None = None) -> Loaded:
    """What can be done about a program before it is known what it runs on.

    Args:
        program: where it is.
        pool: the limits of the many tasks that run it one after the other in this process, which keeps memory for the next one.

    Raises:
        wasmtime.WasmtimeError: the file cannot be loaded.
    """
    config = runtime_config(fuel=program.fuel)
    if pool is not None:
        use_pool(config, pool.table_elements)
    engine = wasmtime.Engine(config)
    return (LoadedComponent if program.component else LoadedModule)(engine, program.artifact)


def make_program(task: RunTask, loaded: Loaded, given: "Given | None" = None) -> "GuestProgram":
    """The program of a task, which is loaded; ``given`` is what this process has for one with the host's tensors."""
    if isinstance(loaded, LoadedModule):
        return CoreProgram(task, loaded)
    return ComponentProgram(task, loaded, given)


class GuestProgram(ABC):
    """What core modules and components share: the store with its limits and what WASI lets them see."""

    def __init__(self, task: RunTask, loaded: Loaded) -> None:
        self.task = task
        self.limits = task.limits
        self.tensors: HostTensors | None = None
        self.initial_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.store = wasmtime.Store(loaded.linker.engine)
        self.store.set_limits(
            memory_size=self.limits.memory_bytes,
            table_elements=self.limits.table_elements,
            instances=MAX_INSTANCES,
            tables=MAX_TABLES,
            memories=MAX_MEMORIES,
        )
        if self.limits.fuel is not None:
            self.store.set_fuel(self.limits.fuel)
        wasi = wasmtime.WasiConfig()
        wasi.argv = ["program", *task.args]
        wasi.env = list(task.env.items())
        wasi.stdout_file = "/proc/self/fd/1"
        wasi.stderr_file = "/proc/self/fd/2"
        wasi.preopen_dir("in", "/in", fs_mutable=False)
        wasi.preopen_dir("out", "/out")
        if task.state:
            wasi.preopen_dir("state", "/state", fs_mutable=task.state == STATE_WRITABLE)
        self.store.set_wasi(wasi)

    @abstractmethod
    def call(self) -> str | None:
        """Run the program; gives the result of a called function, as text.

        Raises:
            CallError: there is no such function, its inputs do not fit, or it gave an error.
            wasmtime.WasmtimeError: the program failed (``explain`` says why), or exited (``wasmtime.ExitTrap``).
        """

    def explain(self, error: wasmtime.Trap | wasmtime.WasmtimeError) -> Failure:
        """The error's text and the limit behind it."""
        if (failure := self.exceeded_quota(error)) is not None:
            return failure
        reason = error_cause(error)
        if "all fuel consumed" in reason:
            return Failure(self.limits.error("fuel"), "fuel")
        if "call stack exhausted" in reason:
            return Failure(limit_error("stack_bytes", _STACK_BYTES), "stack_bytes")
        for text, limit in (
            ("exceeds memory limits", "memory_bytes"),
            ("exceeds table limits", "table_elements"),
        ):
            if text in reason:
                return Failure(f"{self.limits.error(limit)} ({reason})", limit)
        # What aborts and panics are compiled to, in every language.
        if "wasm `unreachable` instruction executed" in reason:
            return self.blame("the program aborted (wasm trap: unreachable)")
        return self.blame(f"the program failed: {reason}")

    def exceeded_quota(self, error: Exception) -> Failure | None:
        """The limit of tensors that the program went over, if it did."""
        if self.tensors is None:
            return None
        if isinstance(error, MemoryError):  # for a tape, an answer, or what operations take for a while
            limit: str | None = "tensor_bytes"
        else:
            limit = self.tensors.exceeded
        return None if limit is None else Failure(self.limits.error(limit), limit)

    def blame(self, text: str) -> Failure:
        """Name the limit that most likely made the program fail.

        A refused ``memory.grow`` only returns -1 to the program, which then fails in its own way; so a program that
        failed with half or more of a limit taken (allocators double) is said to have met it.
        """
        memory, elements = self.memory_taken(), self.table_elements_taken()
        if memory >= self.limits.memory_bytes / 2:
            return Failure(f"{self.limits.error('memory_bytes')} (had {memory} when {text})", "memory_bytes")
        if elements >= self.limits.table_elements / 2:
            return Failure(
                f"{self.limits.error('table_elements')} (had {elements} when {text})", "table_elements"
            )
        return Failure(text)

    def memory_taken(self) -> int:
        """Bytes of the largest linear memory, or those by which the process has grown, as far as can be seen."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.initial_memory

    def table_elements_taken(self) -> int:
        """Elements of the largest table, as far as can be seen."""
        return 0


class CoreProgram(GuestProgram):
    """A core module with WASI preview 1."""

    def __init__(self, task: RunTask, loaded: LoadedModule) -> None:
        super().__init__(task, loaded)
        self.loaded = loaded
        self.visible: list[wasmtime.Memory | wasmtime.Table] = []

    def call(self) -> str | None:
        exports = self.loaded.linker.instantiate(self.store, self.loaded.code).exports(self.store)
        self.visible = [
            item for item in exports.values() if isinstance(item, wasmtime.Memory | wasmtime.Table)
        ]
        wanted = self.task.export
        names = ["_start", "main", "run"]
        if wanted and wanted != "_start":
            names = [wanted, "main", "run", "_start"]
        found = {name: item for name in names if isinstance(item := exports.get(name), wasmtime.Func)}
        if not found:
            raise CallError(f"the program exports no function named {' or '.join(names)}")
        name, function = next(iter(found.items()))
        kind = function.type(self.store)
        arguments = core_arguments([str(each) for each in kind.params], self.task.inputs)
        initialize = exports.get("_initialize")
        if isinstance(initialize, wasmtime.Func) and name != "_start":
            initialize(self.store)
        result = function(self.store, *arguments)
        kinds = [str(each) for each in kind.results]
        return core_result(kinds[0], result[0] if len(kinds) > 1 else result) if kinds else None

    def memory_taken(self) -> int:
        sizes = [item.data_len(self.store) for item in self.visible if isinstance(item, wasmtime.Memory)]
        return max([super().memory_taken(), *sizes])

    def table_elements_taken(self) -> int:
        sizes = [item.size(self.store) for item in self.visible if isinstance(item, wasmtime.Table)]
        return max(sizes, default=0)


class ComponentProgram(GuestProgram):
    """A component that exports ``wasi:cli/run``, or the function that is called."""

    def __init__(self, task: RunTask, loaded: LoadedComponent, given: "Given | None" = None) -> None:
        super().__init__(task, loaded)
        self.loaded = loaded
        if task.host_tensors:
            from propeller.wasm.host_tensors import HostTensors

            self.tensors = HostTensors(Path(), self.limits, given)
            loaded.use_tensors(self.tensors)

    def call(self) -> str | None:
        instance = self._instantiate()
        wanted = self.task.export
        if wanted and wanted != "_start" and (function := instance.get_func(self.store, wanted)):
            return self._call_function(function)
        command = self._command(instance)
        if command is None:
            function_wanted = wanted not in {None, "", "_start"}
            raise CallError(
                f"the component exports neither a function named {wanted} nor wasi:cli/run@0.2"
                if function_wanted
                else "the component does not export wasi:cli/run@0.2"
            )
        if self.task.inputs:
            raise CallError(
                f"inputs: the component exports no function named {wanted} to take them, and a command takes none"
            )
        result = command(self.store)
        if getattr(result, "tag", "ok") != "ok":
            raise CallError("the program exited with code 1")
        return None

    def _instantiate(self) -> component.Instance:
        try:
            return self.loaded.linker.instantiate(self.store, self.loaded.code)
        except wasmtime.WasmtimeError as error:
            parts = str(error).split("`")
            if not parts[0].startswith("component imports"):
                raise
            raise CallError(
                f"the component imports {parts[1]}, which the sandbox does not have: "
                "there are WASI 0.2 and propeller:program/tensors@0.1.0"
            ) from None

    def _command(self, instance: component.Instance) -> component.Func | None:
        for version in ("0.2.0", *(f"0.2.{n}" for n in range(1, 16))):
            interface = instance.get_export_index(self.store, f"wasi:cli/run@{version}")
            index = interface and instance.get_export_index(self.store, "run", interface)
            if index and (function := instance.get_func(self.store, index)):
                return function
        return None

    def _call_function(self, function: component.Func) -> str | None:
        kind = function.type(self.store)
        arguments = component_arguments(kind.params, self.task.inputs)
        result = function(self.store, *arguments)
        return None if kind.result is None else component_result(kind.result, result)


def error_cause(error: Exception) -> str:
    """The innermost reason of a runtime error, on one line."""
    text = str(error)
    lines = text.rsplit("Caused by:", 1)[-1].strip().splitlines()
    reason = " ".join(line.strip() for line in lines)
    return reason[:1000]
