"""Which tape operations go to now: the program's, or that of a function being traced."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from propeller.program.tensors.tape import Machine, MainTape, Tape

_tapes: list[Any] = []


def current() -> Any:
    """The tape to record on."""
    return _tapes[-1] if _tapes else main()


def main() -> MainTape:
    """The program's own tape; the first use chooses the machine."""
    if not _tapes:
        use(local(None))
    first: MainTape = _tapes[0]
    return first


def use(machine: Machine) -> None:
    """Begin anew with this machine; arrays made before are not valid any more."""
    _tapes[:] = [MainTape(machine)]


def tracing() -> bool:
    """Whether a function is being traced."""
    return len(_tapes) > 1


@contextlib.contextmanager
def on(tape: Tape) -> Iterator[None]:
    """Record on another tape for a while."""
    main()
    _tapes.append(tape)
    try:
        yield
    finally:
        _tapes.pop()


def local(root: Path | None) -> Machine:
    """A machine in this process, on the task's files below ``root``: NumPy where it is, else plain Python."""
    try:
        from propeller.wasm.tensors.files import ArrayFiles
        from propeller.wasm.tensors.machine import NumpyMachine
    except ImportError:
        from propeller.program.tensors.files import TaskFiles
        from propeller.program.tensors.pure import PythonMachine

        return PythonMachine(root and TaskFiles(root))
    return NumpyMachine(root and ArrayFiles(root))
