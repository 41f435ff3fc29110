"""What the process of a native program does first: it gives up all that the program must not have, then loads and runs that.

Runs in the device's interpreter, after its own start and before anything foreign: of this package it may import what needs the standard library and NumPy alone.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from propeller.program import command, layer, library_arrays
from propeller.tensors import session
from propeller.wasm import confinement
from propeller.wasm.task_users import TaskUser

_DOCUMENT_FD = 3
_PROGRAM = Path("in/.program")
_KEPT = sys.stdlib_module_names | {"numpy", "propeller"}
CANNOT = 71
"""The exit code of a process that could not confine itself (``EX_OSERR`` of sysexits.h): the program was not loaded."""


def main() -> None:
    """Do the task that the descriptor of the document describes; its argument is this package's folder."""
    try:
        with open(_DOCUMENT_FD, "rb") as file:
            document = json.load(file)
        confine(document["readable"], document["writable"])
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        sys.exit(CANNOT)
    sys.argv[:] = ["program"]
    os.environ.update(document["env"])
    sys.exit(run())


def confine(readable: list[str], writable: list[str], user: TaskUser = TaskUser()) -> None:  # noqa: B008 - frozen
    """Give up everything else, as ``user``.

    Raises:
        OSError: something of it cannot be.
    """
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - before anything is loaded
    if threads != 1:
        raise OSError(
            f"the interpreter has {threads} threads after its start (a .pth file or sitecustomize?): they would not be confined"
        )
    confinement.confine(
        [one for one in readable if os.path.exists(one)],  # noqa: PTH110
        writable,
        user,
        native=True,
    )


def run() -> int:
    """Load the program and do its task; the exit code."""
    try:
        from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine

        machine = NumpyMachine(ArrayFiles(Path()))
        session.use(machine)
        library_arrays.use_numpy(machine)
        with redirect_stdout(sys.stderr):  # the result alone is on standard output
            script, modules = layer.read(_PROGRAM.read_bytes())
            for name in (
                modules.keys() - _KEPT
            ):  # of a library that was imported ahead, which has one of this name
                sys.modules.pop(name, None)
            layer.load(script, modules)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the program does wrong where it is loaded
        command.explain(error)
        return 1
    return command.run(Path())
