"""What a program's arrays belong to: its tape, and what is being done with its functions at the moment."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from propeller.tensors.operations import OperationCall
from propeller.tensors.shapes import TensorError
from propeller.tensors.tape import Handle, Machine, MainTape, Tape


class Session:
    """A machine's tape, and those of functions that are traced or differentiated, innermost last."""

    def __init__(self, machine: Machine | None = None) -> None:
        """Args: machine: what does the steps; without it, the first use chooses ``local_machine``."""
        self._main = None if machine is None else MainTape(machine)
        self._traces: list[Tape] = []
        self._calls: list[list[OperationCall]] = []

    @property
    def main(self) -> MainTape:
        """The program's own tape."""
        if self._main is None:
            self._main = MainTape(local_machine())
        return self._main

    @property
    def tape(self) -> Tape:
        """The tape to record on."""
        return self._traces[-1] if self._traces else self.main

    @property
    def tracing(self) -> bool:
        """Whether a function is being traced."""
        return bool(self._traces)

    @property
    def differentiating(self) -> bool:
        """Whether a gradient is being computed."""
        return bool(self._calls)

    @contextlib.contextmanager
    def trace(self, tape: Tape) -> Iterator[None]:
        """Record on another tape for a while."""
        self._traces.append(tape)
        try:
            yield
        finally:
            self._traces.pop()

    @contextlib.contextmanager
    def differentiate(self) -> Iterator[list[OperationCall]]:
        """Collect the operations that are recorded for a while."""
        calls: list[OperationCall] = []
        self._calls.append(calls)
        try:
            yield calls
        finally:
            self._calls.pop()
            if self._calls:  # of a gradient around this one
                self._calls[-1].extend(calls)

    def add_call(self, call: OperationCall) -> None:
        """Collect an operation, where a gradient is being computed."""
        self._calls[-1].append(call)

    def begin_change(self, array: Handle) -> None:
        """An array is about to be changed in place.

        Raises:
            TensorError: A gradient is being computed, which needs the values as they were.
        """
        if self._calls:
            raise TensorError(
                "an array must not be changed in place where a gradient is computed: write w = w - …"
            )
        self.tape.adopt(array)


_session: ContextVar[Session] = ContextVar("session", default=Session())  # noqa: B039 - one for the whole process


def current() -> Session:
    """The session of this context."""
    return _session.get()


def use(machine: Machine) -> None:
    """Begin anew with this machine; arrays made before are not valid any more."""
    _session.set(Session(machine))


def local_machine(root: Path | None = None) -> Machine:
    """A machine in this process, on the task's files below ``root``: NumPy where it is, else plain Python."""
    try:
        from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
    except ImportError:
        from propeller.tensors.files import TaskFiles
        from propeller.tensors.python_machine import PythonMachine

        return PythonMachine(None if root is None else TaskFiles(root))
    return NumpyMachine(None if root is None else ArrayFiles(root))
