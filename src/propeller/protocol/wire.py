"""The base of every message, strict JSON, times, and the rules that fields share."""

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError
from pydantic_core import from_json

from propeller.errors import InvalidError
from propeller.protocol.finite import Path, find_number, find_word, format_path, require_finite_numbers

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""

_MAX_NAMED_FIELDS = 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MalformedMessageError(InvalidError):
    """A message that is not valid; the text names the field and what is wrong with it."""


class NonFiniteNumberError(MalformedMessageError):
    """A number in a JSON text is NaN or infinite.

    Attributes:
        path: the keys and positions that lead to it.
        value: the number.
    """

    def __init__(self, reason: str, path: Path, value: float) -> None:
        super().__init__(reason)
        self.path, self.value = path, value


class Message(BaseModel):
    """A JSON object on the wire. Unknown fields are ignored, so that newer peers are understood."""

    # Without "constants" pydantic writes NaN and infinities as null: a lost number instead of an error.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, ser_json_inf_nan="constants")

    @classmethod
    def decode(cls, payload: bytes | str | Mapping[str, Any]) -> Self:
        """A message from JSON text or a decoded object.

        Raises:
            MalformedMessageError: not a JSON object, or a field is missing or wrong.
        """
        fields = payload if isinstance(payload, Mapping) else decode_object(payload)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise MalformedMessageError(explain_validation_error(error)) from None

    @classmethod
    def unknown_fields(cls, fields: Mapping[str, Any]) -> list[str]:
        """The names in ``fields`` that this message does not have and ignores, cut to what fits in an answer."""
        names = sorted(set(fields) - set(cls.model_fields))
        return [name[:80] for name in names[:_MAX_NAMED_FIELDS]]

    def encode(self) -> bytes:
        """Compact JSON without the fields that are ``None``.

        Raises:
            ValueError: a number that was put into it later is NaN or infinite; the text has its path.
        """
        text = self.model_dump_json(exclude_none=True)
        if "NaN" in text or "Infinity" in text:  # or a text that says so
            require_finite_numbers(self.model_dump())
        return text.encode()


def decode_object(payload: bytes | str) -> dict[str, Any]:
    """Decode a JSON object.

    Refused, as JSON does not have them or later readers could not read them: NaN and infinities, numbers beyond a
    float's range, halves of surrogate pairs, more than 200 levels of nesting, integers of more than 4300 digits.

    Raises:
        MalformedMessageError: not UTF-8, not JSON, or not an object.
        NonFiniteNumberError: the same, where the fault is a NaN or an infinity that can be found.
    """
    try:
        data = payload.encode() if isinstance(payload, str) else payload
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        text = payload if isinstance(payload, str) else payload.decode(errors="replace")
        if (word := find_word(text)) is not None:
            raise _non_finite(*word) from None
        raise MalformedMessageError(f"Invalid JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedMessageError(f"Invalid JSON: expected an object, got {type(value).__name__}")
    path = find_number(value)
    if path is not None:  # ``1e999`` reads as infinity
        raise NonFiniteNumberError(f"{format_path(path)}: a number is too large", path, math.inf)
    return value


def _non_finite(path: Path, word: str) -> NonFiniteNumberError:
    negative = word.startswith("-")
    value = math.nan if "n" in word.lower().replace("inf", "") else -math.inf if negative else math.inf
    reason = f"{format_path(path)}: {word} is not a finite number; NaN and infinities are not JSON numbers"
    return NonFiniteNumberError(f"Invalid JSON: {reason}", path, value)


def explain_validation_error(error: ValidationError) -> str:
    """One line that names every wrong field: ``round_id: Field required; k_of_n: …``."""
    parts = []
    for item in error.errors(include_url=False, include_input=False)[:_MAX_NAMED_FIELDS]:
        where = ".".join(str(step)[:80] for step in item["loc"]) or "body"
        text = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {text}")
    if error.error_count() > _MAX_NAMED_FIELDS:
        parts.append(f"and {error.error_count() - _MAX_NAMED_FIELDS} more")
    return "; ".join(parts)


def now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as ``2026-01-21T16:12:11.250000Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_time(value: Any) -> Any:
    """Read RFC 3339 (also with nanoseconds, which are cut to microseconds) or a Rust ``SystemTime`` object."""
    if isinstance(value, Mapping) and "secs_since_epoch" in value:
        try:
            micros = int(value.get("nanos_since_epoch", 0)) // 1000
            return _EPOCH + timedelta(seconds=int(value["secs_since_epoch"]), microseconds=micros)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("not a time: secs_since_epoch and nanos_since_epoch must be numbers") from None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValueError(f"{value[:40]!r} is not an RFC 3339 time") from None
    return value


def null_as_empty(value: Any) -> Any:
    """Read ``null``, which absmach/propeller's Go code writes for an empty map, as one."""
    return {} if value is None else value


def null_as_empty_list(value: Any) -> Any:
    """Read ``null``, which absmach/propeller's Go code writes for an empty list, as one."""
    return [] if value is None else value


def require_printable(value: str) -> str:
    """Refuse control characters: a text with them looks like another one in a log or on a screen."""
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValueError("must have no control characters")
    return value


def require_unique(values: list[str]) -> list[str]:
    """Refuse a list that names something twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"named twice: {', '.join(twice[:10])}")
    return values


def reject_boolean(value: Any) -> Any:
    """Refuse ``true`` and ``false`` where a number is meant: they would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic explains ValueErrors
    return value


def require_finite(value: float) -> float:
    """Refuse NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Time = Annotated[datetime, BeforeValidator(read_time), PlainSerializer(format_time, return_type=str)]
"""A moment: written as RFC 3339 UTC, read in both peers' forms."""
