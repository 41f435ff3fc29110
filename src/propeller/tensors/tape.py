"""Where operations are recorded before they are done: crossing into the host costs more than most operations do.

An operation only appends a step here; the steps cross together when a value is needed, and so do the frees. A machine takes them as text:
a JSON list of ``[name, result, operands, params]``, where an operand is a handle (a number that the program chose) or ``[number]``. Beside
the operations there are::

    ["open", handle, [], [source, name]]        a tensor of the model or the data, by name
    ["create", handle, [], [dtype, shape, base64 of the little-endian elements]]
    ["free", null, [handles], null]             those that are not there (their step failed) are passed over
    ["define", id, [], {"inputs": [specs], "donated": [inputs], "steps": [steps on slots], "outputs": [slots]}]
    ["call", [handles], [operands], id]         a defined list of steps on new inputs
    ["read", null, [handle], null]              → base64 of the elements
    ["describe", null, [], source]              → {name: [dtype, shape]}
    ["save", "update", [handles], [names]]      a result: named tensors, written by the host (null: the update)

The machine answers with the JSON list of what the steps with an arrow give.
"""

import json
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from propeller.tensors.operations import infer
from propeller.tensors.shapes import FLOAT, INT, Spec, TensorError, fits

_MAX_WAITING_STEPS = 2000
"""More are sent on at once; keeps what freed handles hold from piling up on the host."""

_MAX_WAITING_CHARACTERS = 8 << 20
"""Of elements that wait to cross; more are sent on."""


class Machine(Protocol):
    """What does the steps: the sandbox's host, NumPy in this process, or plain Python."""

    def run(self, tape: str) -> str:
        """Do the steps, in order.

        Raises:
            TensorError: One cannot be done; those before it are.
        """
        ...


class Handle:
    """The result of a step, known by dtype and shape until it is read; ``Array`` is one with operators."""

    __slots__ = ("dtype", "handle", "shape", "tape")

    def __init__(self, tape: "Tape", handle: int, spec: Spec) -> None:
        self.tape = tape
        self.handle = handle
        self.dtype, self.shape = spec

    @property
    def spec(self) -> Spec:
        """Its dtype and shape."""
        return self.dtype, self.shape


class Tape:
    """Steps in order, whose results have handles from 1 on."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self._last_handle = 0

    def record(self, name: str, operands: Sequence[Any], params: Any = None) -> tuple[int, Spec]:
        """Append an operation; returns the handle of its result, and its spec.

        Raises:
            TensorError: It does not take these operands.
        """
        encoded, specs = [], []
        for value in operands:
            if isinstance(value, Handle) and value.tape is self:  # most are
                encoded.append(value.handle)
                specs.append((value.dtype, value.shape))
                continue
            one, spec = self.encode(value)
            encoded.append(one)
            specs.append(spec)
        spec = infer(name, specs, params)
        return self.append(name, encoded, params), spec

    def encode(self, value: Any) -> tuple[Any, Spec]:
        """What stands for an operand in a step, and its spec.

        Raises:
            TensorError: It is neither an array nor a number.
        """
        if isinstance(value, Handle):
            return self.handle_of(value), value.spec
        if isinstance(value, bool):
            return [value], ("bool", ())
        if isinstance(value, int):
            if not fits(value, INT):
                raise TensorError(f"{value} does not fit int64; write it as a float")
            return [value], (INT, ())
        if isinstance(value, float):
            return [float(value)], (FLOAT, ())
        if getattr(value, "shape", None) == () and hasattr(value, "__array_interface__"):  # a scalar of NumPy
            return self.encode(value.item())
        raise TensorError(
            f"{type(value).__name__} is neither an array nor a number; make it one with array(…)"
        )

    def handle_of(self, value: Handle) -> int:
        """The handle of an array of this tape.

        Raises:
            TensorError: It belongs to a function that was traced.
        """
        if value.tape is not self:
            raise TensorError(
                "this array exists only inside the traced function that made it; return it from there"
            )
        return value.handle

    def append(self, name: str, operands: list[Any], params: Any) -> int:
        """Append a step that gives one array; returns its handle."""
        self._last_handle += 1
        self.steps.append((name, self._last_handle, operands, params))
        return self._last_handle

    def new_handle(self) -> int:
        """A handle for the result of a step that is appended by hand."""
        self._last_handle += 1
        return self._last_handle

    def adopt(self, value: Handle) -> None:
        """This array's elements are about to be replaced by a result of this tape."""

    def release(self, handle: int) -> None:
        """Nobody has this array any more."""

    def read(self, value: Handle) -> bytes:
        """The little-endian elements of an array.

        Raises:
            TensorError: A function is being traced: there are no values yet.
        """
        del value
        raise TensorError(
            "a value is needed inside a traced function, where arrays have only shapes: "
            "read it outside, pass it in as an int, bool or str, or choose with where(condition, x, y)"
        )


class MainTape(Tape):
    """The program's own tape, which crosses to a machine."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self._dead: list[int] = []
        self._routines = 0
        self._lost_routines: set[int] = set()
        self._waiting_characters = 0
        self._ahead: dict[int, bytes] = {}

    def append(self, name: str, operands: list[Any], params: Any) -> int:
        """Append a step; many are sent on at once."""
        self._make_room()
        return super().append(name, operands, params)

    def release(self, handle: int) -> None:
        """Free it with the next crossing."""
        self._dead.append(handle)
        if self._ahead:
            self._ahead.pop(handle, None)

    def flush(self, *questions: tuple[Any, ...]) -> list[Any]:
        """Cross: do every step that waits and these, and return their answers.

        Raises:
            TensorError: A step cannot be done; those that waited are gone.
        """
        steps = [*self.steps, *questions]
        self.steps.clear()  # in place: arrays being traced never see another list
        self._waiting_characters = 0
        if self._dead:
            steps.append(("free", None, self._dead, None))
            self._dead = []
        try:
            answers: list[Any] = json.loads(self.machine.run(json.dumps(steps))) if steps else []
        except TensorError:
            # Those after the step that failed were not done: free again, which does no harm.
            self._dead += [handle for name, _, freed, _ in steps if name == "free" for handle in freed]
            self._lost_routines.update(number for name, number, _, _ in steps if name == "define")
            raise
        return answers

    def read(self, value: Handle) -> bytes:
        """The little-endian elements of an array, after every step before."""
        handle = self.handle_of(value)
        found = self._ahead.pop(handle, None)
        return a2b_base64(self.flush(("read", None, [handle], None))[0]) if found is None else found

    def read_ahead(self, values: Iterable[Handle]) -> None:
        """Have the elements of several arrays with one crossing, for the next ``read`` of each.

        A handle's elements stay the same: what changes an array in place gives it another handle.
        """
        handles = [self.handle_of(value) for value in values]
        if handles:
            answers = self.flush(*[("read", None, [handle], None) for handle in handles])
            self._ahead.update(zip(handles, map(a2b_base64, answers), strict=True))

    def create(self, data: bytes, spec: Spec) -> int:
        """Append an array of these little-endian elements; returns its handle."""
        dtype, shape = spec
        text = b2a_base64(data, newline=False).decode()
        if self._waiting_characters > _MAX_WAITING_CHARACTERS:
            self.flush()
        self._waiting_characters += len(text)
        return self.append("create", [], [dtype, list(shape), text])

    def describe(self, source: str) -> dict[str, Spec]:
        """The tensors of a source (``model``, ``data``, …)."""
        return self.describe_all(source)[0]

    def describe_all(self, *sources: str) -> list[dict[str, Spec]]:
        """The tensors of each of several sources, with one crossing."""
        return [
            {name: (dtype, tuple(shape)) for name, (dtype, shape) in found.items()}
            for found in self.flush(*[("describe", None, [], source) for source in sources])
        ]

    def open(self, source: str, name: str) -> int:
        """Append a tensor of a source; returns its handle."""
        return self.append("open", [], [source, name])

    def save(self, tensors: Mapping[str, Handle], result: str = "update") -> None:
        """Have the machine write a result: the update, unless ``result`` names another one."""
        self.flush(("save", result, [self.handle_of(value) for value in tensors.values()], list(tensors)))

    def define(self, inputs: list[Spec], donated: list[int], steps: list[Any], outputs: list[int]) -> int:
        """Keep steps for later calls; returns their number.

        ``donated`` are inputs that are replaced by a result at each call: their memory may be written over.
        """
        self._routines += 1
        body = {"inputs": inputs, "donated": donated, "steps": steps, "outputs": outputs}
        self.steps.append(("define", self._routines, [], body))
        return self._routines

    def has_routine(self, number: int) -> bool:
        """Whether defined steps are there, as far as is known: they may have waited when another step failed."""
        return number not in self._lost_routines

    def call(self, number: int, operands: list[Any], outputs: int) -> list[int]:
        """Do defined steps on new operands; returns the handles of their outputs."""
        self._make_room()
        handles = [self.new_handle() for _ in range(outputs)]
        self.steps.append(("call", handles, operands, number))
        return handles

    def _make_room(self) -> None:
        """Free early: what is not freed until the crossing's end is memory that the host cannot use again."""
        if len(self.steps) >= _MAX_WAITING_STEPS:
            self.flush()
        elif self._dead:
            self.steps.append(("free", None, self._dead, None))
            self._dead = []


def needed_steps(steps: Sequence[Any], outputs: Sequence[int]) -> list[Any]:
    """The steps without which an output cannot be; nothing else is missed, as these do nothing but give a result."""
    wanted, needed = set(outputs), []
    for step in reversed(steps):
        if step[1] in wanted:
            needed.append(step)
            wanted.update(operand for operand in step[2] if not isinstance(operand, list))
    return needed[::-1]
