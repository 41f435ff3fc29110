"""What the processes of a sandbox tell each other: the proplet's own (the sandbox), the template, and a process a task.

    sandbox → template    StartTask, which brings three descriptors, and KillTask
    template → sandbox    TemplateReady, TaskEnded, TaskNotStarted
    sandbox → task        RunTask, CompileTask, CallTask or ExecTask, in a file
    task → sandbox        TaskReport, once, as its last words

Each is one line of JSON with every field of its class, and is checked when it is read: what comes out is what the class says,
or a ``MessageError``. A task's process ran foreign code, so its report may be anything. The template imports this module and
is small on purpose: standard library only.
"""

import dataclasses
import json
import math
import os
import types
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from propeller.errors import InvalidError
from propeller.wasm.program_run import Limits

STATE_READABLE, STATE_WRITABLE = "read", "write"
"""What a program may do with its ``/state``."""

TENSOR_MODULE = "propeller.wasm.host_tensors"
"""What programs with the host's tensors need."""

_NUMBER_BOUND = 2**63


class MessageError(InvalidError):
    """Bytes are no message of those that may come here; the text says why."""


@dataclass(frozen=True)
class BoundedFolder:
    """What a task sees as ``/out`` or ``/state`` (``name``), which the template searches, and how much may be in it."""

    name: str
    folder: str
    max_bytes: int
    max_files: int


@dataclass(frozen=True)
class CompiledProgram:
    """A compiled program: the file, and what must be known to load it."""

    artifact: str
    component: bool
    fuel: bool


@dataclass(frozen=True)
class StartTask:
    """Give a process to the task in ``task_file``, and end it after ``wall_time_s`` seconds.

    With it come the descriptors of its standard output, standard error and report. It is ended if it has more than ``threads`` threads, or ``descriptors`` descriptors. ``module`` is what the template imports before,
    once, if anything; ``program`` what the task runs, if it does: the next one likely runs it too. ``own_user``: it is a user of its own where tasks are.
    """

    id: int
    task_file: str
    wall_time_s: float
    threads: int
    descriptors: int
    module: str | None = None
    outputs: tuple[BoundedFolder, ...] = ()
    program: CompiledProgram | None = None
    own_user: bool = True


@dataclass(frozen=True)
class KillTask:
    """End the process of a task, if it still runs."""

    id: int


CONFINING = ("landlock", "seccomp")
"""The protections without which what breaks out of Wasm, or is none, reaches other files and calls of the machine."""


@dataclass(frozen=True)
class TemplateReady:
    """The template has started.

    Attributes:
        protections: what its kernel offers to confine tasks.
        first_user: the first of the user ids that tasks have; 0: they run as the proplet's user.
        why: why they do, if so.
        unusable: why this one starts no task, if so: of native programs, what it was to load cannot be forked.
    """

    protections: tuple[str, ...]
    first_user: int = 0
    why: str = ""
    unusable: str = ""


@dataclass(frozen=True)
class TaskEnded:
    """A task's process has ended.

    ``status`` is its exit status (negative: the signal), ``reason`` the limit for which the template ended it, or ``killed``.
    """

    id: int
    status: int
    reason: str | None
    cpu_s: float
    memory_peak_bytes: int


@dataclass(frozen=True)
class TaskNotStarted:
    """There is no process for a task."""

    id: int
    error: str


@dataclass(frozen=True)
class CompileTask:
    """Compile the program in ``source`` into ``target``, which is not there yet and may have ``max_bytes``."""

    source: str
    target: str
    component: bool
    fuel: bool
    max_bytes: int
    limits: Limits


@dataclass(frozen=True)
class RunTask:
    """Run a compiled program once; ``folder`` has its ``in`` and ``out``.

    ``state``: it has a ``state`` too, which the program may only read (``STATE_READABLE``) or also change (``STATE_WRITABLE``).
    """

    folder: str
    program: CompiledProgram
    host_tensors: bool
    env: dict[str, str]
    args: tuple[str, ...]
    export: str | None
    inputs: tuple[str, ...]
    limits: Limits
    state: str | None = None


@dataclass(frozen=True)
class CallTask:
    """Call a function of this project's own with a text; ``folder`` has the ``in`` that it reads and the ``out`` that it writes to.

    ``module`` and ``function`` name it. Its result, a text too, is the report's ``value``.
    """

    folder: str
    module: str
    function: str
    argument: str
    limits: Limits


@dataclass(frozen=True)
class ExecTask:
    """Become an interpreter of the device's own, which confines itself before it runs what is foreign (``native/guest.py``).

    ``command`` is run with ``env`` alone, in ``folder``. ``document`` is what it reads from the descriptor of the report. ``own_user``: it becomes another user where tasks do.
    """

    folder: str
    command: tuple[str, ...]
    env: dict[str, str]
    document: str
    limits: Limits
    own_user: bool


@dataclass(frozen=True)
class TaskReport:
    """How a task's process says that it ended.

    ``stale``: the compiled program cannot be loaded. ``entered_s`` is when the program was called (``time.monotonic``), ``run_s``
    how long it ran, ``fuel`` what it used, ``tensor_steps`` how many operations the host did for it.

    Raises:
        MessageError: a number is out of range, or a text is not Unicode.
    """

    error: str | None = None
    limit: str | None = None
    exit_code: int | None = None
    value: str | None = None
    stale: bool = False
    entered_s: float | None = None
    run_s: float | None = None
    fuel: int | None = None
    tensor_steps: int | None = None
    cpu_s: float | None = None
    memory_peak_bytes: int | None = None

    def __post_init__(self) -> None:
        figures = (
            self.entered_s,
            self.run_s,
            self.fuel,
            self.tensor_steps,
            self.cpu_s,
            self.memory_peak_bytes,
        )
        if not all(figure is None or 0 <= figure < _NUMBER_BOUND for figure in figures):
            raise MessageError("a figure of the report is out of range")
        if self.exit_code is not None and abs(self.exit_code) >= _NUMBER_BOUND:
            raise MessageError("the exit code is out of range")
        try:
            "".join(text for text in (self.error, self.limit, self.value) if text is not None).encode()
        except UnicodeEncodeError:  # JSON can name halves of surrogate pairs
            raise MessageError("a text of the report is not Unicode") from None


def compiler_seconds(limits: Limits) -> int:
    """How much processor time a compilation may take, on all processors together, in whole seconds as the kernel counts them."""
    return max(1, math.ceil(limits.compile_s))


def compiler_threads(limits: Limits) -> int:
    """How many threads a compilation may have: those of a task, and one for each processor."""
    return limits.threads + (os.cpu_count() or 1)


Request = StartTask | KillTask
Reply = TemplateReady | TaskEnded | TaskNotStarted
Task = RunTask | CompileTask | CallTask | ExecTask
Message = Request | Reply | Task | TaskReport


def _plain_types(annotation: Any) -> tuple[type, ...]:
    """The types of JSON values that a field takes as they are."""
    alternatives = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return tuple(plain for plain in (int, str, bool, types.NoneType) if plain in alternatives)


_FIELDS: dict[Any, dict[str, tuple[Any, tuple[type, ...]]]] = {
    kind: {field.name: (field.type, _plain_types(field.type)) for field in dataclasses.fields(kind)}
    for kind in (*get_args(Message), BoundedFolder, CompiledProgram, Limits)
}
"""The fields of each class in order, with their types and what they take as it is; made before the template forks."""


def encode(message: Message) -> bytes:
    """A message as a line."""
    return json.dumps({"message": type(message).__name__, **vars(message)}, default=vars).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """What the sandbox asks of the template.

    Raises:
        MessageError: it is no request.
    """
    request: Request = _decode(line, (StartTask, KillTask))
    return request


def decode_reply(line: bytes) -> Reply:
    """What the template tells the sandbox.

    Raises:
        MessageError: it is no reply.
    """
    reply: Reply = _decode(line, (TemplateReady, TaskEnded, TaskNotStarted))
    return reply


def decode_task(content: bytes) -> Task:
    """What a task's process is to do.

    Raises:
        MessageError: it is no task.
    """
    task: Task = _decode(content, (RunTask, CompileTask, CallTask, ExecTask))
    return task


def decode_report(content: bytes | bytearray) -> TaskReport | None:
    """What a task's process has said; None: nothing, or nothing that can be read."""
    try:
        report: TaskReport = _decode(content, (TaskReport,))
    except MessageError:
        return None
    return report


def _decode(line: bytes | bytearray, kinds: tuple[type[Message], ...]) -> Any:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise MessageError("not JSON") from None
    name = fields.pop("message", None) if isinstance(fields, dict) else None
    for kind in kinds:
        if kind.__name__ == name:
            return _built(kind, fields, kind.__name__)
    raise MessageError(f"no message of {', '.join(kind.__name__ for kind in kinds)}")


def _built(kind: Any, values: Any, where: str) -> Any:
    fields = _FIELDS[kind]
    if not isinstance(values, dict) or values.keys() != fields.keys():
        raise MessageError(f"{where}: not an object with the fields {', '.join(fields)}")
    return kind(
        *(
            value
            if type(value := values[name]) in plain_types
            else _checked(annotation, value, f"{where}.{name}")
            for name, (annotation, plain_types) in fields.items()
        )
    )


def _checked(annotation: Any, value: Any, where: str) -> Any:
    """A value of JSON as the annotation of a field wants it.

    Raises:
        MessageError: it is of another type, or a number that is not finite.
    """
    if type(value) in _plain_types(annotation):
        return value
    if dataclasses.is_dataclass(annotation):
        return _built(annotation, value, where)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is types.UnionType:
        return _checked(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_checked(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _checked(arguments[1], item, where) for key, item in value.items()}
    if annotation is float and type(value) in {int, float} and abs(value) < _NUMBER_BOUND:
        return value
    raise MessageError(f"{where}: not of type {annotation}")
