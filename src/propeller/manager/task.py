"""A task: what a client asks for, its state, and its form in the HTTP API."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from propeller.errors import InvalidError
from propeller.protocol.finite import JsonObject
from propeller.protocol.ids import Id
from propeller.protocol.programs import WASM_MAGIC
from propeller.protocol.task import USUAL_PRIORITY, Flag, TaskLimits, Text
from propeller.protocol.wire import MalformedMessageError, Message, decode_object, format_time

ZERO_TIME = "0001-01-01T00:00:00Z"
_PREVIEW_CHARACTERS = 10
"""Shown of each end of a program."""


class TaskState(IntEnum):
    """The state of a task, numbered as in the HTTP API."""

    PENDING = 0
    SCHEDULED = 1  # has a proplet; the broker has not yet acknowledged its start
    RUNNING = 2
    COMPLETED = 3
    FAILED = 4


ACTIVE_STATES = (TaskState.SCHEDULED, TaskState.RUNNING)


class EndCause(StrEnum):
    """What ended a task."""

    RESULT = "result"
    STOP = "stop"
    LOST = "lost"  # its proplet fell silent; a result that comes after all still counts


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _standard_if_empty(value: Any) -> Any:
    return value or "standard"


Name = Annotated[str, Field(min_length=1, max_length=256)]


Priority = Annotated[StrictInt, Field(ge=0, le=100)]

_MAX_METADATA_BYTES = 1024 * 1024

_ANSWERED = frozenset(
    {
        "id",
        "state",
        "file",
        "results",
        "error",
        "usage",
        "stage",
        "start_time",
        "finish_time",
        "created_at",
        "updated_at",
        "next_run",
        "parts",
        "parent_id",
    }
)
"""What the manager says of a task, and clients may send back; and ``file``, which is not kept with the rest."""


def _usual_if_zero(value: Any) -> Any:
    return USUAL_PRIORITY if value == 0 and not isinstance(value, bool) else value


def _of_bounded_size(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is not None and (size := len(json.dumps(metadata))) > _MAX_METADATA_BYTES:
        raise ValueError(f"has {size} characters of JSON, at most {_MAX_METADATA_BYTES} are kept")
    return metadata


class TaskSpec(Message):
    """What a client may set of a task. State, results and times are the manager's: they are ignored when sent."""

    name: Name
    kind: Annotated[Literal["standard", "federated", "prefetch"], BeforeValidator(_standard_if_empty)] = (
        "standard"
    )
    """What becomes of the program: it is run, or only fetched and compiled (``prefetch``)."""
    image_url: Annotated[Text, Field(max_length=512)] = ""
    cli_args: list[str] | None = None
    inputs: list[StrictBool | StrictInt | StrictFloat | StrictStr | list[Any]] | None = None
    env: dict[str, str] | None = None
    daemon: Flag = False
    encrypted: Flag = False
    kbs_resource_path: Annotated[Text, Field(max_length=512)] = ""
    proplet_id: Annotated[Id | None, BeforeValidator(_none_if_empty)] = None
    monitoring_profile: dict[str, Any] | None = None
    mode: Annotated[Literal["infer", "train"] | None, BeforeValidator(_none_if_empty)] = None
    limits: TaskLimits = None
    broadcast: Flag = False
    """For every proplet that is alive when it is started: each has a part."""
    priority: Annotated[Priority | None, BeforeValidator(_usual_if_zero)] = None
    """Who goes first of those that wait on a device: the highest number; those without one count as 50."""
    metadata: Annotated[JsonObject | None, AfterValidator(_of_bounded_size)] = None
    """The client's own, by which it finds the task again."""

    @classmethod
    def ignored_fields(cls, fields: Mapping[str, Any]) -> list[str]:
        """The names of fields that a task does not have and that ask for something: those of an answer do not, nor do empty ones."""
        return cls.unknown_fields(
            {
                name: value
                for name, value in fields.items()
                if name not in _ANSWERED and value not in (None, False, "", 0, [], {})
            }
        )


class TaskChange(TaskSpec):
    """``PUT /tasks/{id}``: what is absent or ``null`` stays as it is."""

    name: Name = "unchanged"


@dataclass(frozen=True)
class Task:
    """A task as it is stored."""

    id: str
    spec: TaskSpec
    state: TaskState
    created_at: datetime
    file_preview: str | None = None
    proplet_id: str | None = None
    round_id: str | None = None
    results: Any = None
    error: str | None = None
    usage: Mapping[str, float] | None = None
    ended_by: EndCause | None = None
    stopping_on: str | None = None
    start_time: datetime | None = None
    finish_time: datetime | None = None
    updated_at: datetime | None = None
    parent_id: str | None = None

    @property
    def active(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in ACTIVE_STATES

    @property
    def ended(self) -> bool:
        """Whether it ran, and does so no more."""
        return self.state in {TaskState.COMPLETED, TaskState.FAILED}

    def to_json(self) -> dict[str, Any]:
        """The task object of the HTTP API; of an uploaded program only its two ends are shown."""
        spec = self.spec
        optional = {
            "file": self.file_preview,
            "image_url": spec.image_url,
            "inputs": spec.inputs,
            "env": spec.env,
            "kbs_resource_path": spec.kbs_resource_path,
            "proplet_id": self.proplet_id,
            "error": self.error,
            "monitoring_profile": spec.monitoring_profile,
            "mode": spec.mode,
            "limits": spec.limits,
            "priority": spec.priority,
            "metadata": spec.metadata,
            "usage": self.usage,
            "broadcast": spec.broadcast,
            "parent_id": self.parent_id,
        }
        return {
            "id": self.id,
            "name": spec.name,
            "kind": spec.kind,
            "state": int(self.state),
            "cli_args": spec.cli_args,
            "daemon": spec.daemon,
            "encrypted": spec.encrypted,
            **{key: value for key, value in optional.items() if value},
            **({"results": self.results} if self.results is not None else {}),
            "start_time": _json_time(self.start_time),
            "finish_time": _json_time(self.finish_time),
            "created_at": _json_time(self.created_at),
            "updated_at": _json_time(self.updated_at),
        }


def describe_parts(parts: Sequence[Task]) -> list[dict[str, Any]]:
    """The parts of a task as its JSON has them."""
    return [
        {
            "id": part.id,
            "proplet_id": part.proplet_id,
            "state": int(part.state),
            **({"error": part.error} if part.error else {}),
        }
        for part in parts
    ]


def results_of_parts(parts: Sequence[Task]) -> dict[str, Any]:
    """The results of a task's parts by proplet; of those that have not ended, and of failed ones, ``null``."""
    return {part.proplet_id or "": part.results for part in parts}


def _json_time(moment: datetime | None) -> str:
    return format_time(moment) if moment else ZERO_TIME


def program_preview(content: bytes) -> str:
    """The base64 of a program without its middle, as later absmach/propeller (H) shows it."""
    text = base64.b64encode(content).decode()
    return (
        text
        if len(text) <= 2 * _PREVIEW_CHARACTERS
        else f"{text[:_PREVIEW_CHARACTERS]}<REDACTED>{text[-_PREVIEW_CHARACTERS:]}"
    )


def decode_metadata(text: str) -> dict[str, Any]:
    """The metadata that tasks must have to be listed.

    Raises:
        InvalidError: it is no JSON object.
    """
    try:
        return decode_object(text)
    except MalformedMessageError as error:
        raise InvalidError(f'metadata: {error}; write it as {{"owner": "me"}}') from None


def decode_program(text: Any) -> bytes:
    """The program in a task's ``file``.

    Raises:
        InvalidError: it is not base64 or not Wasm.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidError("file: not valid base64 text") from None
    return check_program(content)


def check_program(content: bytes) -> bytes:
    r"""The same bytes, if they begin as Wasm does (``\0asm``).

    Raises:
        InvalidError: they do not.
    """
    if not content.startswith(WASM_MAGIC):
        raise InvalidError("file: not a Wasm program (it does not begin with \\0asm)")
    return content
