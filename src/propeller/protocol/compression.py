"""How devices compress their updates: in an experiment as a name or a table, to devices as the table (``FL_UPDATE``)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, PlainSerializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from propeller.protocol.strict import StrictMessage, nearest_names

DEFAULT_TOP_K = 0.01
"""What ``"top_k"`` by itself stands for."""

_VALUES = ("float16", "bfloat16", "int8", "int4")
_NAMES = ("none", "zstd", *_VALUES, "top_k")


class Compression(StrictMessage):
    """The stages of compression; each is there or not, whatever the others are.

    Attributes:
        top_k: this part of the numbers of each tensor is sent, the largest ones.
        values: the form in which numbers are sent.
        error_feedback: the device keeps what was not sent, and adds it to its next update. Default: with ``top_k``.
        zstd: the document is compressed with zstd (RFC 8878). Default: if any stage is there.
    """

    top_k: Annotated[float, Field(gt=0, lt=1)] | None = None
    values: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32"
    error_feedback: bool = False
    zstd: bool = False

    @classmethod
    def complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Say which stages follow from others."""
        sparse = fields.get("top_k") is not None
        return {
            "error_feedback": sparse,
            "zstd": sparse or fields.get("values", "float32") != "float32",
            **fields,
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.error_feedback and not self.is_lossy:
            raise ValueError(
                "error_feedback needs a stage that loses something: give top_k, or values other than float32, or leave it out"
            )
        return self

    @property
    def is_lossy(self) -> bool:
        """Whether numbers change."""
        return self.top_k is not None or self.values != "float32"

    @property
    def is_none(self) -> bool:
        """Whether there is no stage."""
        return not (self.is_lossy or self.zstd)

    def __str__(self) -> str:
        """In a few words, as ``top_k 0.01 + int8 + zstd``."""
        stages = [
            *([f"top_k {self.top_k:g}"] if self.top_k is not None else []),
            *([self.values] if self.values != "float32" else []),
            *(["zstd"] if self.zstd else []),
        ]
        return " + ".join(stages) or "none"


def _read(value: Any) -> Any:
    """The table that a name stands for."""
    if isinstance(value, str):
        if value not in _NAMES:
            near = nearest_names(value, _NAMES)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise ValueError(
                f"{value[:80]!r} is not known; {hint} are {', '.join(_NAMES)}, and tables of stages"
            )
        return _table(value)
    if not isinstance(value, Mapping | Compression):
        raise ValueError(  # noqa: TRY004 - pydantic explains ValueErrors
            f"must be one of {', '.join(_NAMES)}, or a table of {', '.join(sorted(Compression.model_fields))}"
        )
    return value


def _table(name: str) -> dict[str, Any]:
    if name == "none":
        return {}
    if name == "top_k":
        return {"top_k": DEFAULT_TOP_K}
    return {"zstd": True} if name == "zstd" else {"values": name}


def _write(compression: Compression) -> Any:
    return "none" if compression.is_none else compression.to_json()


class _OrName:
    """Says in the schema that a name stands for a table."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "enum": list(_NAMES)}, handler(core_schema)]}


NamedCompression = Annotated[Compression, BeforeValidator(_read), PlainSerializer(_write), _OrName()]
"""Compression by a name or as a table; written as a table, or ``none``."""
