"""The base of every message, strict JSON, times, and the rules that fields share."""

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError
from pydantic_core import from_json

from propeller.errors import InvalidError, TooLargeError
from propeller.protocol.finite import Path, find_number, find_word, format_path, require_finite_numbers
from propeller.protocol.number_lists import cut_number_lists, outside_texts, restore

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""

MAX_VALUES = 100_000
"""The most values in a JSON text, but for lists of numbers where they are read by themselves: some 10 MB and 60 ms of a processor."""

_SHORT_BYTES = 64 * 1024
"""A text of so many bytes has fewer values."""

_LONG_BYTES = 1024 * 1024
_DIGITS = 200
"""In longer texts than ``_LONG_BYTES``, digits in a row from twice this number on are refused: reading such a number is slow."""

_LIKE = 0.75
"""How like a field an ignored one must be to be taken for it: others' fields, which are rightly ignored, have names like it, too."""

_MAX_NAMED_FIELDS = 10
_MAX_COUNTED_FIELDS = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MalformedMessageError(InvalidError):
    """A message that is not valid; the text names the field and what is wrong with it."""


class TooManyValuesError(MalformedMessageError, TooLargeError):
    """A JSON text has more values than are read at once."""


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
        """The names in ``fields`` that this message does not have and ignores, cut to what fits in an answer.

        One that is like a field which is not given is followed by that, as ``kofn (did you mean 'k_of_n'?)``.
        """
        from propeller.protocol.strict import nearest_names  # which is made of this

        names = sorted(set(fields) - set(cls.model_fields))[:_MAX_NAMED_FIELDS]
        missing = set(cls.model_fields) - set(fields)
        near = [next(iter(nearest_names(name[:80], missing, likeness=_LIKE)), None) for name in names]
        return [
            name[:80] if meant is None else f"{name[:80]} (did you mean {meant!r}?)"
            for name, meant in zip(names, near, strict=True)
        ]

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
        TooManyValuesError: it has more than ``MAX_VALUES`` values.
    """
    return _decode(payload, payload, MAX_VALUES)


def decode_tensors(payload: bytes | str, *fields: str) -> dict[str, Any]:
    """As ``decode_object``, an object with tensors in it, of any size: long lists of numbers in it are read as ``NumberList``.

    That takes a while: call it from a thread, which holds the interpreter some milliseconds at a time.

    Args:
        payload: the text.
        fields: those that have tensors; none: all of them.

    Raises:
        MalformedMessageError: as there.
        NonFiniteNumberError: as there.
        TooManyValuesError: it has more than ``MAX_VALUES`` values beside these lists, or in lists of unequal lengths.
    """
    if len(payload) <= _SHORT_BYTES:
        return decode_object(payload)
    text, lists = cut_number_lists(payload.encode() if isinstance(payload, str) else payload)
    decoded, left = _decode(text, payload, MAX_VALUES), MAX_VALUES

    def numbers(text: str) -> Any:
        return lists[text].numbers if text in lists else text

    def plain(text: str) -> Any:
        nonlocal left
        if text not in lists:
            return text
        left -= len(lists[text].numbers.numbers)
        if left < 0:
            raise _too_many(MAX_VALUES)
        return from_json(bytes(lists[text].text))

    return {
        name: restore(value, numbers if not fields or name in fields else plain)
        for name, value in decoded.items()
    }


def decode_trusted(payload: bytes | str) -> dict[str, Any]:
    """As ``decode_object``, however many values there are: in a service's own files, and in what it asks another service for.

    Raises:
        MalformedMessageError: as there.
    """
    return _decode(payload, payload, None)


def check_values(text: bytes, max_values: int) -> None:
    """Refuse a text with too many values, by the commas and brackets outside of its texts in quotes.

    Raises:
        TooManyValuesError: it has more.
    """
    if text.count(b",") + text.count(b"[") + text.count(b"{") <= max_values and len(text) <= _LONG_BYTES:
        return
    count = 0
    for start, end in outside_texts(text):
        count += (
            1 + text.count(b",", start, end) + text.count(b"[", start, end) + text.count(b"{", start, end)
        )
        if count > 2 * max_values:  # a text in quotes counts, and the comma before it
            raise _too_many(max_values)
        if any(text[at : at + _DIGITS].isdigit() for at in range(start, end - _DIGITS, _DIGITS)):
            raise MalformedMessageError(f"Invalid JSON: a number of more than {_DIGITS} digits")


def _too_many(max_values: int) -> TooManyValuesError:
    return TooManyValuesError(
        f"Invalid JSON: more than {max_values} values, which are not read at once; send tensors as safetensors"
    )


def _decode(payload: bytes | str, given: bytes | str, max_values: int | None) -> dict[str, Any]:
    """Decode a text, which is ``given`` but for what was cut out."""
    try:
        data = payload.encode() if isinstance(payload, str) else payload
        if max_values is not None and len(data) > _SHORT_BYTES:
            check_values(data, max_values)
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        payload = given
        text = payload if isinstance(payload, str) else payload.decode(errors="replace")
        if (word := find_word(text)) is not None:
            raise _non_finite(*word) from None
        if isinstance(error, MalformedMessageError):
            raise
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
    if error.error_count() > _MAX_COUNTED_FIELDS:  # naming them takes longer than reading them
        return f"{error.error_count()} fields are wrong"
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


def read_count(text: str, digits: int = 18) -> int | None:
    """A number of 0 or more that is written in at most so many digits, and in nothing else; ``None`` for another text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


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
