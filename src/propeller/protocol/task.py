"""Tasks on the wire: topics ``start``, ``stop`` and ``results``."""

import base64
import binascii
import json
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from propeller.protocol.ids import Id
from propeller.protocol.limits import TaskLimits
from propeller.protocol.wire import Message, null_as_empty, null_as_empty_list


def _false_if_null(value: Any) -> Any:
    return False if value is None else value


def _zero_if_null(value: Any) -> Any:
    return 0 if value is None else value


def empty_if_null(value: Any) -> Any:
    """``null`` where an empty text is meant."""
    return "" if value is None else value


def _usage(value: Any) -> Any:
    """The finite numbers of an object: nobody's result is refused for what it says beside it."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name)[:80]: number
        for name, number in list(value.items())[:_MOST_FIGURES]
        if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < _LARGEST
    }


_MOST_FIGURES, _LARGEST = 64, 2.0**63
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def read_input(value: Any) -> Any:
    """An input is a number in S and a string in H; both become the decimal text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Flag = Annotated[bool, BeforeValidator(_false_if_null)]
Text = Annotated[str, BeforeValidator(empty_if_null)]
Input = Annotated[str, BeforeValidator(read_input)]


class TaskStart(Message):
    """The manager asks a proplet to run a task.

    ``inputs`` are decimal texts here; ``encode`` writes them as the receiver's version wants them.
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
    """H: to be kept ready, and run when it is invoked."""
    limits: TaskLimits = None
    """Lower ones than the proplet's own; other proplets do not know it."""

    @model_validator(mode="after")
    def _has_a_program(self) -> "TaskStart":
        if not self.image_url and not self.file:
            raise ValueError("one of image_url and file must name the program")
        return self

    def program_bytes(self) -> bytes | None:
        """The program, when the message carries it.

        Raises:
            ValueError: ``file`` is not base64.
        """
        if not self.file:
            return None
        try:
            return base64.b64decode(self.file, validate=True)
        except binascii.Error:
            raise ValueError("file: not valid base64") from None

    def encode(self, *, text_inputs: bool = False) -> bytes:
        """Write for S and H alike: every key of S present, never ``null`` where S cannot read it.

        ``inputs`` go as numbers, as S proplets decode nothing else, or as texts for H proplets, likewise.
        """
        fields = self.model_dump(mode="json")
        fields["inputs"] = (
            self.inputs if text_inputs else [_as_number(text) for text in self.inputs]
        ) or None
        fields["cli_args"] = self.cli_args or None
        fields["env"] = self.env or None
        if self.limits is None:
            del fields["limits"]
        return encode_json(fields)


def _as_number(text: str) -> int | float | str:
    """The number that a decimal text stands for; any other text as it is."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def encode_json(value: Any) -> bytes:
    """Compact JSON; NaN is a ``ValueError``."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class TaskStop(Message):
    """The manager asks a proplet to end a task."""

    id: Id
    proplet_id: str | None = None
    broadcast: Flag = False


class FlEnvelope(Message):
    """The result of a federated task: the update again, as base64, beside the ids (S ``build_fl_update_envelope``)."""

    task_id: str
    round_id: str
    proplet_id: str
    num_samples: int = 1
    update_b64: str = ""
    format: str = "f32-delta"
    metrics: Annotated[dict[str, Any], BeforeValidator(null_as_empty)] = Field(default_factory=dict)


class TaskResult(Message):
    """A task ended. ``results`` is text, or an object for a federated task; ``error`` tells whether it failed."""

    task_id: Id
    proplet_id: str | None = None
    results: Any = ""
    error: str | None = None
    usage: Annotated[dict[str, float], BeforeValidator(_usage)] = Field(default_factory=dict)
    """What the run took, by our proplets' names (docs/reference.md); others do not say."""

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
        """Write; ``error`` is always there, ``null`` on success."""
        fields = self.model_dump(mode="json", exclude_none=True)
        if not self.usage:
            del fields["usage"]
        return encode_json({**fields, "error": self.error})
