"""Messages that a person writes: each wrong field is refused by its path, with what would be right."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import (
    ConfigDict,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from propeller.protocol.wire import MalformedMessageError, Message, decode_object

MAX_NAMED_PROBLEMS = 10
"""The most wrong fields that an error names."""

MAX_FIELDS = 1000
"""Of a table: it takes long to say of so many that there are none such."""


def nearest_names(name: str, known: Iterable[str], *, likeness: float = 0.6) -> list[str]:
    """Up to three of the known names that ``name`` may be a misspelling of, the nearest first; a ``likeness`` of 1 is the same name."""
    lower = {one.casefold(): one for one in known}
    return [lower[one] for one in difflib.get_close_matches(name.casefold(), list(lower), 3, likeness)]


class StrictMessage(Message):
    """A message that a person writes: strict types, no other fields, and no ``null`` for what is not there when written."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text_field: ClassVar[str | None] = None
    """The field that a text in the place of the message stands for."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Names that people try here, and what the field is called, or where it is."""

    @classmethod
    def decode(cls, payload: bytes | str | Mapping[str, Any]) -> Self:
        """Read JSON text or a decoded object.

        Raises:
            MalformedMessageError: a field is missing, unknown, wrong, or contradicts another one.
        """
        fields = payload if isinstance(payload, Mapping) else decode_object(payload)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise MalformedMessageError(_explain(find_problems(cls, error))) from None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str) and cls.text_field is not None:
            value = {cls.text_field: value}
        if not isinstance(value, Mapping):
            return value
        if len(value) > MAX_FIELDS:
            raise ValueError(
                f"has {len(value)} fields, of which there are {', '.join(sorted(cls.model_fields))}"
            )
        return cls.complete({k: v for k, v in value.items() if v is not None or k not in cls.model_fields})

    @classmethod
    def complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with the defaults that depend on others; nothing is checked yet."""
        return fields

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.text_field is None:
            return schema
        return {"anyOf": [{"type": "string", "description": f"its {cls.text_field}"}, schema]}

    @model_serializer(mode="wrap")
    def _without_nulls(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Not ``exclude_none``, which would also drop a hyperparameter or a strategy's parameter that is null.
        known = type(self).model_fields
        return {name: value for name, value in write(self).items() if value is not None or name not in known}

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``decode`` gives the same back."""
        fields: dict[str, Any] = self.model_dump(mode="json")
        return fields


class NestedProblemsError(ValueError):
    """What is wrong inside a value that is read by itself."""

    def __init__(self, problems: list[tuple[tuple[str, ...], str]]) -> None:
        self.problems = problems
        super().__init__(_explain(problems))


def find_problems(part: type[StrictMessage], error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """The path of each wrong field, and what is wrong with it."""
    found = []
    for item in error.errors(include_url=False, include_input=False):
        where = tuple(str(step)[:80] for step in item["loc"])
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, NestedProblemsError):
            found += [((*where, *path), text) for path, text in inner.problems]
        elif item["type"] == "extra_forbidden":
            found.append((where, _explain_unknown_at(where, part)))
        elif item["type"] == "model_type":
            names = ", ".join(sorted(_part_at(part, where).model_fields))
            found.append((where, f"must be a table of {names}"))
        else:
            found.append((where, item["msg"].removeprefix("Value error, ")))
    return found


def _explain(problems: list[tuple[tuple[str, ...], str]]) -> str:
    lines = [": ".join(filter(None, (".".join(path), text))) for path, text in problems[:MAX_NAMED_PROBLEMS]]
    more = len(problems) - MAX_NAMED_PROBLEMS
    return "; ".join([*lines, f"and {more} more"] if more > 0 else lines)


def explain_unknown(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """What is said of a field that there is not: the one that was probably meant, and those that there are.

    Args:
        name: what was given.
        known: the fields.
        elsewhere: names that people try, and what the field is called, or where it is.
    """
    names = sorted(known)
    near = nearest_names(name, names)
    meant = near[0] if near else elsewhere.get(name)
    hint = f"; did you mean {meant!r}? There" if meant else "; there"
    return f"there is no such field{hint} are {', '.join(names)}"


def _explain_unknown_at(where: tuple[str, ...], part: type[StrictMessage]) -> str:
    *path, name = where
    owner = _part_at(part, path)
    return explain_unknown(name, owner.model_fields, owner.elsewhere)


def _part_at(part: type[StrictMessage], path: Iterable[str]) -> type[StrictMessage]:
    for step in path:
        part = _part_of(part.model_fields[step].annotation) or part
    return part


def _part_of(annotation: Any) -> type[StrictMessage] | None:
    """The part in an annotation such as ``Selection | None``."""
    if isinstance(annotation, type) and issubclass(annotation, StrictMessage):
        return annotation
    return next((part for one in get_args(annotation) if (part := _part_of(one))), None)


def require_json(value: Any) -> Any:
    """Refuse what JSON does not have: NaN, infinities, dates, keys that are no text."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError("must be a finite number")
        if isinstance(one, dict):
            if not all(isinstance(key, str) for key in one):
                raise ValueError("the names in a table must be texts")
            pending += one.values()
        elif isinstance(one, list):
            pending += one
        elif not (one is None or isinstance(one, str | int | float)):
            raise ValueError("must be made of text, finite numbers, true, false, lists and tables")
    return value
