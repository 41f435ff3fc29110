"""What a simulation and its workers tell each other: a line of JSON each, and after a report the bytes of its update.

A worker runs foreign code, so that what comes from it may be anything: it is checked, and never unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, get_args

from propeller.errors import UnavailableError
from propeller.simulation.client_data import Part

_MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker runs, told once.

    Attributes:
        parent: the process that it ends with.
        artifact: the compiled program.
        component: whether it is one, or a core module.
        host_tensors: whether it uses the host's tensors.
        layer: what a program over a shared runtime is given, in base64.
        folder: the worker's own.
        data: the folder with the clients' data.
        central: the folder with the data of a central evaluation, if there is one.
        models: the folder with the models of rounds.
        states: the folder with what programs keep between rounds.
        limits: of each task, by their names.
        native_python: the interpreter of a native program, which ``artifact`` is then.
    """

    parent: int
    artifact: str
    component: bool
    host_tensors: bool
    layer: str | None
    folder: str
    data: str
    central: str | None
    models: str
    states: str
    limits: Mapping[str, Any]
    native_python: str | None = None


@dataclass(frozen=True)
class RoundTask:
    """What the clients of a round have in common.

    Attributes:
        number: tells rounds apart.
        env: of every task.
        evaluates: whether metrics are wanted, and no update.
        model: the file of the base model, in safetensors.
        strategy: the file of what the strategy has for devices, if anything.
        split: ``holdout`` and ``seed``, if a part of the data is held out.
        update: what the strategy wants of an update: dtype and shape of each tensor by name.
    """

    number: int
    env: Mapping[str, str]
    evaluates: bool
    model: str
    strategy: str | None
    split: Mapping[str, Any] | None
    update: Mapping[str, Any]

    @property
    def part(self) -> Part | None:
        """Which of a client's samples its task is given; ``None``: all of them."""
        if self.split is None:
            return None
        return Part(self.split["holdout"], self.split["seed"], evaluates=self.evaluates)


@dataclass(frozen=True)
class ClientTask:
    """One client's part in a round.

    ``client`` is the number of its data; ``None`` is the data of a central evaluation. ``state`` is the folder of what it kept in the
    round before, and ``residual`` the file of what its compressed updates left out, if anything.
    """

    id: int
    round: int
    client: int | None
    proplet_id: str
    seed: int
    state: str | None = None
    residual: str | None = None


@dataclass(frozen=True)
class ClientReport:
    """What became of a task: a fault, or the header of an update whose bytes follow.

    Attributes:
        id: of the task.
        error: why it failed; ``None``: it did not.
        header: the update's, by field.
        bytes: how long what follows is: the update's tensors in safetensors.
        transfer: how a device would have sent it, by field of ``Transfer``.
        kept: the folder of what the client keeps now, if anything.
        residual: the file of what its compressed updates have left out, if that is kept.
    """

    id: int
    error: str | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0
    transfer: Mapping[str, Any] = field(default_factory=dict)
    kept: str | None = None
    residual: str | None = None


@dataclass(frozen=True)
class WorkerReady:
    """A worker has loaded the program, and is confined."""


Message = WorkerSetup | RoundTask | ClientTask | ClientReport | WorkerReady
_KINDS: dict[str, type[Any]] = {one.__name__: one for one in get_args(Message)}


class WorkerError(UnavailableError):
    """A worker ended, or says what no worker would."""


def write_message(stream: IO[bytes], message: Message, content: bytes = b"") -> None:
    """Write a message, and the bytes that follow it; ``flush`` the stream to send it."""
    # Not asdict, which copies: the fields are written as they are.
    line = json.dumps({"message": type(message).__name__, **vars(message)}, allow_nan=False)
    stream.write(line.encode() + b"\n")
    if content:
        stream.write(content)


def read_message(stream: IO[bytes]) -> Message | None:
    """The next message; ``None`` at the end, and of a writer that was killed in the middle of one.

    Raises:
        WorkerError: it is none.
    """
    line = stream.readline(_MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        if len(line) >= _MAX_LINE_BYTES:
            raise WorkerError("simulation: a worker said something endless")
        return None
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("message")]
        message: Message = kind(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WorkerError(f"simulation: a worker said what is no message: {error!s:.200}") from None
    return message
