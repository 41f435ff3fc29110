"""The base of every message: strict when written, tolerant when read."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError


class MalformedMessageError(ValueError):
    """A message that cannot be read; the text names the field and what is wrong with it."""


class Message(BaseModel):
    """A JSON object on the wire. Unknown fields are ignored, so that newer peers can be read."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, ser_json_inf_nan="strings")

    @classmethod
    def decode(cls, payload: bytes | str | Mapping[str, Any]) -> Self:
        """Read a message from JSON text or a decoded object.

        Raises:
            MalformedMessageError: not a JSON object, or a field is missing or wrong.
        """
        fields = payload if isinstance(payload, Mapping) else decode_object(payload)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise MalformedMessageError(explain(error)) from None

    def encode(self) -> bytes:
        """Write compact JSON; fields that are ``None`` by default and unset are left out."""
        return self.model_dump_json(exclude_none=True, by_alias=True).encode()


def decode_object(payload: bytes | str) -> dict[str, Any]:
    """Decode a JSON object; NaN and infinities are not JSON and are refused.

    Raises:
        MalformedMessageError: not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedMessageError(f"expected a JSON object, got {type(value).__name__}")
    return value


def explain(error: ValidationError) -> str:
    """One line that names every wrong field: ``round_id: Field required; k_of_n: …``."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(step) for step in item["loc"]) or "body"
        text = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {text}")
    return "; ".join(parts)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as ``2026-01-21T16:12:11.250000Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_time(value: Any) -> Any:
    """Read RFC 3339 (also with nanoseconds) or the object that a Rust ``SystemTime`` becomes."""
    if isinstance(value, Mapping) and "secs_since_epoch" in value:
        try:
            seconds = float(value["secs_since_epoch"]) + float(value.get("nanos_since_epoch") or 0) / 1e9
            return datetime.fromtimestamp(seconds, UTC)
        except (TypeError, ValueError, OverflowError, OSError):
            raise ValueError("not a time: secs_since_epoch and nanos_since_epoch must be numbers") from None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value[:40]!r} is not an RFC 3339 time") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return value


def null_as_empty(value: Any) -> Any:
    """``null`` where absmach/propeller's Go code writes it for an empty map."""
    return {} if value is None else value


def null_as_empty_list(value: Any) -> Any:
    """``null`` where absmach/propeller's Go code writes it for an empty list."""
    return [] if value is None else value


def finite(value: float) -> float:
    """Refuse NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


Time = Annotated[datetime, BeforeValidator(read_time), PlainSerializer(format_time, return_type=str)]
"""A moment: written as RFC 3339 UTC, read in both peers' forms."""
