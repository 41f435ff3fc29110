"""Updates on the wire: who trained what on how many samples, with which metrics; and the tensors, where they are in the same document."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, field_validator, model_validator

from propeller.metrics import (
    DIVERGED,
    MAX_METRIC_NAME,
    MAX_METRICS,
    metric_fault,
    metrics_fault,
    names_fault,
    split_metrics,
)
from propeller.protocol.finite import Path, format_path
from propeller.protocol.ids import Id
from propeller.protocol.rounds import ModelRef, UpdateKind
from propeller.protocol.task import empty_if_null
from propeller.protocol.wire import (
    MAX_INTEGER,
    MalformedMessageError,
    Message,
    NonFiniteNumberError,
    decode_tensors,
    require_printable,
)

MAX_SAMPLES = MAX_INTEGER
"""The largest ``num_samples``."""

CBOR = "application/cbor"
CBOR_TYPES = frozenset({CBOR, "application/cbor-seq"})
"""The media types of an update in CBOR (RFC 8949, RFC 8742)."""


def _finite_numbers(metrics: Any) -> Any:
    if metrics is None:
        return {}
    if not isinstance(metrics, dict):
        raise ValueError("must be an object of finite numbers by name")  # noqa: TRY004 - pydantic explains ValueErrors
    if fault := metrics_fault(metrics):
        raise ValueError(fault)
    return metrics


Metrics = Annotated[dict[str, float], PlainValidator(_finite_numbers)]
"""Finite numbers by name; anything else is refused by the metric's name."""

LeftOut = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=MAX_METRIC_NAME), AfterValidator(require_printable)],
        Annotated[str, Field(max_length=32), AfterValidator(require_printable)],
    ],
    Field(max_length=MAX_METRICS),
]
"""Metrics that are no numbers, by their names: what they are instead, as ``text``."""


class UpdateHeader(Message):
    """An update without its tensors: who trained what on how many samples, with which metrics.

    It is also all that an evaluation has. ``steps`` are local steps of the optimizer, for strategies that weigh by them;
    ``corrected`` is whether the program added to its gradients what the strategy asks for (``FL_STRATEGY``), if it says so.
    Metrics that are no numbers are left out, and ``metrics_left_out`` has what they were; NaN and infinities are refused.
    """

    round_id: Id
    proplet_id: Id
    base_model_uri: Annotated[ModelRef, BeforeValidator(empty_if_null)] = ""
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)]
    metrics: Metrics = Field(default_factory=dict)
    steps: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)] | None = None
    kind: UpdateKind = "weights"
    corrected: bool | None = None
    metrics_left_out: LeftOut | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_metrics(cls, fields: Any) -> Any:
        metrics = fields.get("metrics") if isinstance(fields, dict) else None
        if not isinstance(metrics, dict) or names_fault(metrics):
            return fields
        numbers, left_out = split_metrics(metrics)
        if not left_out:
            return fields
        before = fields.get("metrics_left_out")
        return {
            **fields,
            "metrics": numbers,
            "metrics_left_out": {**before, **left_out} if isinstance(before, dict) else left_out,
        }


class UpdateMessage(UpdateHeader):
    """``POST /update``: the header with the tensors as JSON (``{"w": [...], "b": 0.0}``)."""

    update: dict[str, Any]

    @field_validator("update")
    @classmethod
    def _not_empty(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("update data is required and cannot be empty")
        return value


def decode_update(payload: bytes | str) -> dict[str, Any]:
    """An update as ``decode_tensors`` reads it.

    Raises:
        MalformedMessageError: as there.
    """
    return decode_tensors(payload, "update")


def read_update_fields(
    payload: bytes | str, within: Path = (), *, read: Callable[[bytes | str], dict[str, Any]] = decode_update
) -> dict[str, Any]:
    """The fields of an update or an evaluation in JSON, as ``decode_object`` reads them.

    Args:
        payload: the text of all of it, or of one field.
        within: the path to that field.
        read: how it is decoded; with ``decode_trusted`` all numbers are plain ones, however many there are.

    Raises:
        MalformedMessageError: it is no JSON object; of NaN and infinities the text says where one is, and what it means.
    """
    try:
        return read(payload)
    except NonFiniteNumberError as error:
        match [*within, *error.path]:
            case ["metrics", str(name)]:
                reason = f"metrics: {metric_fault(name, error.value)}"
            case path:
                reason = f"{format_path(path)} is {error.value}; every number must be finite: {DIVERGED}"
        raise MalformedMessageError(reason) from None
