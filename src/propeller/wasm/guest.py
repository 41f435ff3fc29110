"""A program in its task's process: what WASI lets it see, how it is called, and why it failed."""

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wasmtime
from wasmtime import component

from propeller.wasm import typed, values
from propeller.wasm.job import over

if TYPE_CHECKING:
    from propeller.wasm.host_tensors import HostTensors

STACK_BYTES = 2 * 1024 * 1024
"""The program's call stack; 4 MiB makes the runtime abort."""


def config(*, fuel: bool) -> wasmtime.Config:
    """The runtime's configuration; what changes here changes the cache's key (see ``cache.py``)."""
    made = wasmtime.Config()
    made.max_wasm_stack = STACK_BYTES
    made.consume_fuel = fuel
    return made


class Program:
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
        if (met := self.quota(error)) is not None:
            return met
        reason = cause(error)
        if "all fuel consumed" in reason:
            return over("fuel", self.limits["fuel"], "instructions"), "fuel"
        if "call stack exhausted" in reason:
            return over("stack_bytes", STACK_BYTES), "stack_bytes"
        if "exceeds memory limits" in reason:
            return f"{over('memory_bytes', self.limits['memory_bytes'])} ({reason})", "memory_bytes"
        if "exceeds table limits" in reason:
            return (
                f"{over('table_elements', self.limits['table_elements'], 'elements')} ({reason})",
                "table_elements",
            )
        return self.blame(f"the program failed: {reason}")

    def quota(self, error: Exception) -> tuple[str, str | None] | None:
        """The error and the limit of tensors that it went over, if it did."""
        if self.tensors is None:
            return None
        if isinstance(
            error, MemoryError
        ):  # no room for a tape, an answer, or what operations take for a while
            return over("tensor_bytes", self.limits["tensor_bytes"]), "tensor_bytes"
        return self.tensors.limit()

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


class Core(Program):
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


class Component(Program):
    """A component that exports ``wasi:cli/run``, or the function that is called."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        self.program = component.Component.deserialize_file(self.engine, task["artifact"])
        self.linker = component.Linker(self.engine)
        self.linker.add_wasip2()
        if task["tensors"]:
            from propeller.wasm.host_tensors import HostTensors

            self.tensors = HostTensors(Path(task["folder"]), self.limits)
            self.tensors.define(self.linker)

    def call(self) -> str | None:
        instance = self._instantiate()
        wanted = self.task["export"]
        if wanted and wanted != "_start" and (function := instance.get_func(self.store, wanted)):
            return self._called(function)
        command = self._command(instance)
        if command is None:
            called = wanted not in {None, "", "_start"}
            raise values.CallError(
                f"the component exports neither a function named {wanted} nor wasi:cli/run@0.2"
                if called
                else "the component does not export wasi:cli/run@0.2"
            )
        if self.task["inputs"]:
            raise values.CallError(
                f"inputs: the component exports no function named {wanted} to take them, and a command takes none"
            )
        result = command(self.store)
        if getattr(result, "tag", "ok") != "ok":
            raise values.CallError("the program exited with code 1")
        return None

    def _instantiate(self) -> component.Instance:
        try:
            return self.linker.instantiate(self.store, self.program)
        except wasmtime.WasmtimeError as error:
            said = str(error).split("`")
            if not said[0].startswith("component imports"):
                raise
            raise values.CallError(
                f"the component imports {said[1]}, which the sandbox does not have: "
                "there are WASI 0.2 and propeller:program/tensors@0.1.0"
            ) from None

    def _command(self, instance: component.Instance) -> component.Func | None:
        for version in ("0.2.0", *(f"0.2.{n}" for n in range(1, 16))):
            place = instance.get_export_index(self.store, f"wasi:cli/run@{version}")
            index = place and instance.get_export_index(self.store, "run", place)
            if index and (function := instance.get_func(self.store, index)):
                return function
        return None

    def _called(self, function: component.Func) -> str | None:
        kind = function.type(self.store)
        arguments = typed.read(kind.params, self.task["inputs"])
        result = function(self.store, *arguments)
        return None if kind.result is None else typed.write(kind.result, result)


def cause(error: Exception) -> str:
    """The innermost reason of a runtime error, on one line."""
    text = str(error)
    lines = text.rsplit("Caused by:", 1)[-1].strip().splitlines()
    reason = " ".join(line.strip() for line in lines)
    return reason[:1000]
