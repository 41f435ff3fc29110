"""Gives a component the host's tensors: the interface ``propeller:program/tensors`` of ``wit/program.wit``."""

from pathlib import Path
from typing import Any

from wasmtime import component

from propeller.tensors.machine import QuotaError
from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
from propeller.tensors.shapes import TensorError
from propeller.wasm.program_run import Limits

INTERFACE = "propeller:program/tensors@0.1.0"


class HostTensors:
    """One task's tensors."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Args: folder: has ``in`` and ``out``; limits: the task's."""
        self._machine = NumpyMachine(
            ArrayFiles(folder), max_bytes=limits.tensor_bytes, max_handles=limits.tensor_handles
        )
        self.exceeded: str | None = None
        """The name of the limit that the program went over, if it did."""

    @property
    def steps(self) -> int:
        """How many operations were done."""
        return self._machine.steps_done

    def define(self, linker: component.Linker) -> None:
        """Add the interface to what programs can import."""
        with linker.root() as root, root.add_instance(INTERFACE) as instance:
            instance.add_func("run", self._run)

    def _run(self, _store: Any, tape: str) -> component.Variant:
        try:
            return component.Variant("ok", self._machine.run(tape))
        except TensorError as error:
            return component.Variant("err", str(error).encode(errors="replace").decode())  # halves of pairs
        except MemoryError:
            self.exceeded = "tensor_bytes"
            raise
        except QuotaError as error:
            self.exceeded = error.limit
            raise
