"""Tasks on the wire: topics ``start``, ``stop`` and ``results``, and the limits that a task asks for."""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from propeller.protocol.ids import Id
from propeller.protocol.models import SentModel
from propeller.protocol.strict import nearest_names
from propeller.protocol.wire import (
    MAX_INTEGER,
    MalformedMessageError,
    Message,
    null_as_empty,
    null_as_empty_list,
)

WALL_TIME = "wall_time_s"

LIMIT_NAMES = (
    WALL_TIME,
    "fuel",
    "memory_bytes",
    "table_elements",
    "stdout_bytes",
    "stderr_bytes",
    "out_bytes",
    "out_files",
    "state_bytes",
    "state_files",
    "module_bytes",
    "tensor_bytes",
    "tensor_handles",
    "threads",
    "descriptors",
)
"""Seconds; Wasm instructions; bytes and counts (docs/reference.md). Limits on compilation are the proplet's alone."""

_MAX_USAGE_ENTRIES, _USAGE_BOUND = 64, 2.0**63
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _false_if_null(value: Any) -> Any:
    return False if value is None else value


def _zero_if_null(value: Any) -> Any:
    return 0 if value is None else value


USUAL_PRIORITY = 50
"""Of a task that asks for none."""


def _usual_if_null(value: Any) -> Any:
    return USUAL_PRIORITY if value is None else value


def empty_if_null(value: Any) -> Any:
    """Read ``null``, which absmach/propeller's Go code writes for an empty text, as one."""
    return "" if value is None else value


def _usage(value: Any) -> Any:
    """The finite numbers of an object: no result is refused because of the usage that it reports."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name)[:80]: number
        for name, number in list(value.items())[:_MAX_USAGE_ENTRIES]
        if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < _USAGE_BOUND
    }


def check_limits(limits: Any) -> dict[str, int | float] | None:
    """The limits, if their names are known and their values above 0; ``None`` if there are none.

    All but the wall time are integers. An unknown name is refused although messages ignore unknown fields: a limit
    that is not enforced is none.

    Raises:
        ValueError: naming the limit and what is wrong with it.
    """
    if limits is None:
        return None
    if not isinstance(limits, Mapping):
        raise ValueError('must be an object, as {"wall_time_s": 60}')  # noqa: TRY004 - pydantic's convention
    for name, value in limits.items():
        if name not in LIMIT_NAMES:
            near = nearest_names(str(name)[:80], LIMIT_NAMES)
            meant = f"; did you mean {near[0]!r}? There" if near else "; there"
            raise ValueError(f"{str(name)[:80]!r} is no limit{meant} are {', '.join(LIMIT_NAMES)}")
        wanted = (int, float) if name == WALL_TIME else (int,)
        if isinstance(value, bool) or not isinstance(value, wanted):
            kind = "a number of seconds" if name == WALL_TIME else "a whole number"
            raise ValueError(f"{name} must be {kind}")  # noqa: TRY004
        if not 0 < value <= MAX_INTEGER:
            raise ValueError(f"{name} must be above 0 and at most {MAX_INTEGER}")
    return dict(limits) or None


def _decimal_text(value: Any) -> Any:
    """An input, a number in S and a text in H, as decimal text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Flag = Annotated[bool, BeforeValidator(_false_if_null)]
Text = Annotated[str, BeforeValidator(empty_if_null)]
Input = Annotated[str, BeforeValidator(_decimal_text)]

TaskLimits = Annotated[dict[str, int | float] | None, BeforeValidator(check_limits)]
"""The most that a task may use, by the limit's name; its proplet takes the smaller of these and its own."""


class TaskStart(Message):
    """The manager asks a proplet to run a task.

    ``inputs`` are decimal texts here; ``encode`` writes them as the receiver's version reads them.
    """

    id: Id
    name: str = Field(min_length=1)
    state: Annotated[int, BeforeValidator(_zero_if_null)] = 0
    image_url: Text = ""
    file: str | None = None
    inputs: Annotated[list[Input], BeforeValidator(null_as_empty_list)] = Field(default_factory=list)
    cli_args: Annotated[list[str], BeforeValidator(null_as_empty_list)] = Field(default_factory=list)
    daemon: Flag = False
    env: Annotated[dict[str, str], BeforeValidator(null_as_empty)] = Field(default_factory=dict)
    encrypted: Flag = False
    kbs_resource_path: Text = ""
    monitoring_profile: dict[str, Any] | None = None
    proplet_id: str | None = None
    broadcast: Flag = False
    latent: Flag = False
    """H: keep it ready, and run it when it is invoked."""
    limits: TaskLimits = None
    """Only lower ones than the proplet's own count; proplets of absmach/propeller ignore them."""
    priority: Annotated[int, BeforeValidator(_usual_if_null)] = USUAL_PRIORITY
    """0 to 100: of tasks that wait on a device, the one with the highest goes first."""
    prefetch: Flag = False
    """Fetch the program and compile it, and run nothing; proplets of absmach/propeller would run it."""
    model: SentModel | None = None
    """The base model of a round's task, if it is small; else the device asks the model registry for it."""

    @model_validator(mode="after")
    def _has_a_program(self) -> Self:
        if not self.image_url and not self.file:
            raise ValueError("one of image_url and file must name the program")
        return self

    def program_bytes(self) -> bytes | None:
        """The program, if the message carries it.

        Raises:
            MalformedMessageError: ``file`` is not base64.
        """
        if not self.file:
            return None
        try:
            return base64.b64decode(self.file, validate=True)
        except binascii.Error:
            raise MalformedMessageError("file: not valid base64") from None

    def encode(self, *, text_inputs: bool = False) -> bytes:
        """JSON for S and H: every key of S is present, never ``null`` where S cannot read it.

        ``inputs`` are numbers, as S proplets decode nothing else, or texts, as H proplets decode nothing else.
        """
        fields = self.model_dump(mode="json")
        fields["inputs"] = (
            self.inputs if text_inputs else [_as_number(text) for text in self.inputs]
        ) or None
        fields["cli_args"] = self.cli_args or None
        fields["env"] = self.env or None
        for name in ("limits", "prefetch", "model"):
            if not fields[name]:
                del fields[name]
        if self.priority == USUAL_PRIORITY:
            del fields["priority"]
        return encode_json(fields)


def _as_number(text: str) -> int | float | str:
    """The number in a decimal text; any other text as it is."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def encode_json(value: Any) -> bytes:
    """Compact JSON.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class Stage(StrEnum):
    """What a proplet does for a task; the values are on the wire and in a task's JSON."""

    WAITING = "waiting"
    FETCHING = "preparing: fetching"
    COMPILING = "preparing: compiling"
    RUNNING = "running"
    SENDING = "sending"

    @property
    def doing(self) -> str:
        """What its proplet is doing, as in "it was still …"."""
        return _DOING[self]


_DOING = {
    Stage.WAITING: "waiting for other tasks of its device",
    Stage.FETCHING: "fetching the program and its inputs",
    Stage.COMPILING: "compiling the program",
    Stage.RUNNING: "running the program",
    Stage.SENDING: "sending the result",
}


class TaskStage(Message):
    """A proplet says what it does for a task, once that takes longer than a second; proplets of absmach/propeller do not."""

    task_id: Id
    proplet_id: Id
    stage: Stage


class TaskStop(Message):
    """The manager asks a proplet to end a task."""

    id: Id
    proplet_id: str | None = None
    broadcast: Flag = False


class FlEnvelope(Message):
    """The result of a federated task: a copy of the update as base64, with the ids (``build_fl_update_envelope`` in S)."""

    task_id: str
    round_id: str
    proplet_id: str
    num_samples: int = 1
    update_b64: str = ""
    format: str = "f32-delta"
    metrics: Annotated[dict[str, Any], BeforeValidator(null_as_empty)] = Field(default_factory=dict)


class TaskResult(Message):
    """A task ended. ``results`` is text, or an object for a federated task; with an ``error`` it failed."""

    task_id: Id
    proplet_id: str | None = None
    results: Any = ""
    error: str | None = None
    usage: Annotated[dict[str, float], BeforeValidator(_usage)] = Field(default_factory=dict)
    """What the run used, by the names in docs/reference.md; proplets of absmach/propeller do not report it."""

    @property
    def failed(self) -> bool:
        """Whether the task ended with an error."""
        return bool(self.error)

    @property
    def sender(self) -> str | None:
        """The proplet that ran the task; federated results name it only inside the envelope."""
        if self.proplet_id:
            return self.proplet_id
        inner = self.results.get("proplet_id") if isinstance(self.results, dict) else None
        return inner if isinstance(inner, str) else None

    def encode(self) -> bytes:
        """JSON in which ``error`` is always present, ``null`` on success."""
        fields = self.model_dump(mode="json", exclude_none=True)
        if not self.usage:
            del fields["usage"]
        return encode_json({**fields, "error": self.error})
