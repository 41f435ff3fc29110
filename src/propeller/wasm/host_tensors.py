"""Gives a component the host's tensors: the interface ``propeller:program/tensors`` of ``wit/program.wit``."""

import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from wasmtime import component

from propeller.tensors.files import Source
from propeller.tensors.machine import QuotaError
from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
from propeller.tensors.routine import Routine
from propeller.tensors.shapes import TensorError
from propeller.wasm.program_run import Limits
from propeller.wasm.text_function import add_text_function

INTERFACE = "propeller:program/tensors@0.1.0"


@dataclass(frozen=True)
class Given:
    """What a process that runs many tasks has for one of them.

    Attributes:
        sources: tensors that are in none of the task's files.
        routines: kept steps that earlier tasks have sent, too.
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    routines: MutableMapping[str, Routine] | None = None


class HostTensors:
    """One task's tensors."""

    def __init__(self, folder: Path, limits: Limits, given: Given | None = None) -> None:
        """Args: folder: has ``in`` and ``out``; limits: the task's; given: what this process has for it."""
        given = given or Given()
        inputs = folder / "in"
        if (
            inputs.is_symlink()
        ):  # what is on its way may not be another user's to pass, as the task becomes one
            inputs = Path(f"/proc/self/fd/{os.open(inputs, os.O_PATH | os.O_DIRECTORY)}")
        self._machine = NumpyMachine(
            ArrayFiles(folder, given.sources, inputs),
            max_bytes=limits.tensor_bytes,
            max_handles=limits.tensor_handles,
            known_routines=given.routines,
        )
        self.exceeded: str | None = None
        """The name of the limit that the program went over, if it did."""

    @property
    def steps(self) -> int:
        """How many operations were done."""
        return self._machine.steps_done

    def run(self, tape: str) -> tuple[bool, str]:
        """Do a tape's steps: what the interface's ``run`` gives a program, a ``TextFunction``.

        Raises:
            QuotaError, MemoryError: a limit is reached; ``exceeded`` is its name.
        """
        try:
            return True, self._machine.run(tape)
        except TensorError as error:
            return False, str(error).encode(errors="replace").decode()  # halves of pairs
        except MemoryError:
            self.exceeded = "tensor_bytes"
            raise
        except QuotaError as error:
            self.exceeded = error.limit
            raise


def define_tensors(linker: component.Linker, current: Callable[[], HostTensors]) -> object:
    """Add the interface to what programs can import; ``current`` gives the tensors of the task that runs.

    Returns:
        What must live as long as the linker.
    """
    with linker.root() as root, root.add_instance(INTERFACE) as instance:
        return add_text_function(instance, "run", lambda tape: current().run(tape))
