"""What a program's arrays belong to: its tape, and what is being done with its functions at the moment."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from propeller.tensors.operations import Call, OperationCall
from propeller.tensors.shapes import TensorError
from propeller.tensors.tape import Handle, Machine, MainTape, Tape


class TensorSession:
    """A machine's tape, and what is being done with a function: traced, or differentiated.

    Attributes:
        main: the program's own tape.
        tape: the one to record on: of the function being traced, or ``main``.
        calls: the operations recorded since the innermost gradient began, in their order; None where none is being computed.
    """

    def __init__(self, machine: Machine) -> None:
        """Args: machine: what does the steps."""
        self.main = MainTape(machine)
        self.tape: Tape = self.main
        self.calls: list[Call] | None = None

    @property
    def tracing(self) -> bool:
        """Whether a function is being traced."""
        return self.tape is not self.main

    @contextlib.contextmanager
    def record_on(self, tape: Tape, calls: list[Call] | None = None) -> Iterator[None]:
        """Record a function's operations on a tape of its own, and collect them where a list for that is given."""
        outer = self.tape, self.calls
        self.tape, self.calls = tape, calls
        try:
            yield
        finally:
            self.tape, self.calls = outer

    @contextlib.contextmanager
    def differentiate(self) -> Iterator[list[Call]]:
        """Collect the operations that are recorded, for a gradient and for those around it."""
        outer = self.calls
        calls: list[Call] = []
        self.calls = calls
        try:
            yield calls
        finally:
            self.calls = outer
            if outer is not None:
                for call in calls:
                    outer.extend([call] if isinstance(call, OperationCall) else call.expanded())

    def begin_change(self, array: Handle) -> None:
        """An array is about to be changed in place.

        Raises:
            TensorError: A gradient is being computed, and the array was there before: the gradient is by its values as they were.
        """
        if self.calls is not None and not any(
            array is result for call in self.calls for result in call.results
        ):
            raise TensorError(
                "where a gradient is computed, an array from outside must not be changed in place: write w = w - …"
            )
        self.tape.adopt(array)

    def end_change(self, array: Handle, before: Handle) -> None:
        """An array has new elements now, those of what was recorded last, and ``before``, which this gave, has the array's own."""
        if self.calls is not None:
            self.calls[:] = [call.exchanged(array, before) for call in self.calls]


class LocalMachine:
    """A machine in this process, chosen when there is something to do: NumPy where it is, else plain Python."""

    def __init__(self, root: Path | None = None) -> None:
        """Args: root: the folder of the task's files; None: there are none."""
        self._root = root
        self._machine: Machine | None = None

    def run(self, tape: str) -> str:
        """As ``Machine.run``."""
        if self._machine is None:
            self._machine = self._choose()
        return self._machine.run(tape)

    def _choose(self) -> Machine:
        try:
            from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
        except ImportError:
            from propeller.tensors.files import TaskFiles
            from propeller.tensors.python_machine import PythonMachine

            return PythonMachine(None if self._root is None else TaskFiles(self._root))
        return NumpyMachine(None if self._root is None else ArrayFiles(self._root))


_session: ContextVar[TensorSession] = ContextVar("session", default=TensorSession(LocalMachine()))  # noqa: B039 - one for the whole process


def current() -> TensorSession:
    """The session of this context."""
    return _session.get()


def use(machine: Machine) -> None:
    """Start a new session on this machine; arrays of the one before are no longer valid."""
    _session.set(TensorSession(machine))
