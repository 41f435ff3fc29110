"""Which tape operations go to now: the program's, or that of a function being traced."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from propeller.tensors.shapes import TensorError
from propeller.tensors.tape import Handle, Machine, MainTape, Tape

Note = tuple[str, Sequence[Any], Any, Any]
"""An operation that was recorded: its name, operands, params and result."""

_tapes: list[Any] = []
_notes: list[list[Note]] = []


def current() -> Any:
    """The tape to record on."""
    return _tapes[-1] if _tapes else main()


def record(name: str, operands: Sequence[Any], params: Any = None) -> Any:
    """Record an operation on the tape; returns its result's array."""
    result = current().record(name, operands, params)
    if _notes:
        _notes[-1].append((name, operands, params, result))
    return result


def change(array: Handle) -> None:
    """An array is about to be changed in place.

    Raises:
        TensorError: A gradient is being computed, which needs the values as they were.
    """
    if _notes:
        raise TensorError(
            "an array must not be changed in place where a gradient is computed: write w = w - …"
        )
    current().adopt(array)


@contextlib.contextmanager
def noted(notes: list[Note]) -> Iterator[None]:
    """Note what is recorded for a while."""
    _notes.append(notes)
    try:
        yield
    finally:
        _notes.pop()
        if _notes:  # of a gradient around this one
            _notes[-1].extend(notes)


def main() -> MainTape:
    """The program's own tape; the first use chooses the machine."""
    if not _tapes:
        use(local(None))
    first: MainTape = _tapes[0]
    return first


def use(machine: Machine) -> None:
    """Begin anew with this machine; arrays made before are not valid any more."""
    _tapes[:] = [MainTape(machine)]


def noting() -> bool:
    """Whether a gradient is being computed."""
    return bool(_notes)


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
        from propeller.tensors.numpy_files import ArrayFiles
        from propeller.tensors.numpy_machine import NumpyMachine
    except ImportError:
        from propeller.tensors.files import TaskFiles
        from propeller.tensors.python_machine import PythonMachine

        return PythonMachine(None if root is None else TaskFiles(root))
    return NumpyMachine(None if root is None else ArrayFiles(root))
