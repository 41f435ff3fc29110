"""Where a model version comes from, as the model registry keeps it beside the version's tensors."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from propeller.errors import InvalidError, TooLargeError
from propeller.protocol.ids import Id
from propeller.protocol.wire import MalformedMessageError, Message, Time, decode_object

LINEAGE_FIELD = "lineage"
"""The field of a document's ``__metadata__`` that says where a version comes from, in JSON."""

MAX_LINEAGE_BYTES = 64 * 1024
"""The longest lineage, as JSON in UTF-8."""

LARGE_BYTES = 4 * 1024 * 1024
"""A longer model or update in safetensors is large: it is read from a file, not held in memory, and has no JSON form for programs."""

MODEL_DIGEST_HEADER = "X-Model-Digest"
"""Of a device's request for a model: the digest that its task names (``MODEL_DIGEST``)."""

SENT_ALONG_BYTES = 8 * 1024
"""The longest model, as safetensors, that devices get with the start of their tasks; they ask the model registry for longer ones."""

_Count = Annotated[int, Field(ge=0, strict=True)]


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError("not valid base64") from None


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


class SentModel(Message):
    """A base model that is sent along with the start of a task, in the forms in which programs have it.

    Attributes:
        text: it as JSON.
        tensors: it as a safetensors document; on the wire in base64.
    """

    text: str
    tensors: Annotated[bytes, BeforeValidator(_from_base64), PlainSerializer(_to_base64)]


def lineage_of(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The lineage in the metadata of a version's document; ``None`` where it has none that can be read."""
    try:
        return decode_object(metadata[LINEAGE_FIELD])
    except (KeyError, MalformedMessageError):
        return None


def without_updates(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with which a version is sent: without its lineage's list of updates.

    That may be as long as a small model, and says who else took part to each device that has one.
    """
    kept, lineage = dict(metadata), lineage_of(metadata)
    if lineage is not None and lineage.pop("updates", None) is not None:
        kept[LINEAGE_FIELD] = json.dumps(lineage, separators=(",", ":"), ensure_ascii=False)
    return kept


class _Part(BaseModel):
    """A part of a lineage; fields of one's own are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class StrategyUsed(_Part):
    """The strategy that made a version: a name, or a program, and its parameters."""

    name: str | None = None
    program: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class ProgramUsed(_Part):
    """The program that trained: its reference, and the digest that it stood for."""

    reference: str
    digest: str | None = None


class UpdateUsed(_Part):
    """An update that went into a version.

    Attributes:
        proplet_id: its sender.
        digest: of its tensors, as the coordinator keeps them.
        num_samples: its samples.
        slot: the sender's position among the round's participants, from 0; left out: the place in the list.
        steps: local optimizer steps, if the program said how many.
        metrics: finite numbers by name.
        base: the version that it started from; left out: the parent.
        kind: whether its tensors are weights, or differences to that version.
        staleness: how many versions its experiment made since ``base``; left out: as many as the numbers differ by.
    """

    proplet_id: Id
    digest: str
    num_samples: _Count
    slot: _Count | None = None
    steps: _Count | None = None
    metrics: dict[str, Annotated[float, Field(strict=True)]] = Field(default_factory=dict)
    base: _Count | None = None
    kind: Literal["weights", "delta"] = "weights"
    staleness: _Count | None = None


def updates_digest(updates: Sequence[Mapping[str, Any]]) -> str:
    """What stands for a list of updates that is too long for a lineage: the SHA-256 of its compact JSON with sorted keys."""
    text = json.dumps(list(updates), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Lineage(Message):
    """Where a version comes from. Every field may be missing; fields of one's own are kept.

    Attributes:
        experiment: the id of the experiment.
        round: the id of the round.
        number: of the round in the experiment, from 1.
        parent: the version that the round's updates started from.
        strategy: how the updates became this version.
        program: what the participants ran.
        participants: how many updates went into it.
        num_samples: of all of them.
        metrics: of the round, by name.
        updates: each of them by its digest, from which the version can be computed again.
        updates_digest: of that list, in its place where it is too long; the coordinator's database has the list.
        state: the version whose server state the strategy went on from.
        created_at: when the aggregate was made.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    experiment: Id | None = None
    round: Id | None = None
    number: Annotated[int, Field(ge=1, strict=True)] | None = None
    parent: _Count | None = None
    strategy: StrategyUsed | None = None
    program: ProgramUsed | None = None
    participants: _Count | None = None
    num_samples: _Count | None = None
    metrics: dict[str, Annotated[float, Field(strict=True)]] | None = None
    updates: list[UpdateUsed] | None = None
    updates_digest: str | None = None
    state: _Count | None = None
    created_at: Time | None = None


def lineage_text(lineage: str | Mapping[str, Any]) -> str:
    """A lineage as it is kept: compact JSON of the fields that are given.

    Args:
        lineage: the fields, or JSON of them.

    Raises:
        TooLargeError: it is longer than ``MAX_LINEAGE_BYTES``.
        InvalidError: it is no JSON object, or a field is wrong: the text names the field.
    """
    if isinstance(lineage, str):
        _check_size(lineage)
    try:
        fields = decode_object(lineage) if isinstance(lineage, str) else dict(lineage)
        Lineage.decode(fields)
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InvalidError(f"lineage: {error}") from None
    _check_size(text)
    return text


def _check_size(text: str) -> None:
    size = len(text.encode(errors="replace"))
    if size > MAX_LINEAGE_BYTES:
        raise TooLargeError(
            f"lineage: {size} bytes of JSON are over the limit of {MAX_LINEAGE_BYTES}; leave out its updates"
        )
