"""What a program that aggregates is told, and what it leaves: checked, and in the base model's dtypes (docs/programs.md)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from propeller.errors import UnprocessableError
from propeller.fl.tensors import (
    DTYPES,
    Array,
    Specs,
    TensorError,
    Tensors,
    bounds,
    check_shapes,
    from_json,
    from_safetensors,
    is_integer,
    shapes_of,
)
from propeller.protocol.aggregation import PlannedContribution
from propeller.protocol.wire import MalformedMessageError, decode_trusted

MODE = "aggregate"
"""``FL_MODE`` of such a task."""

TASK_FILE = "aggregation.json"
"""What it is told, beside tensors."""

MAX_VALUES_BYTES = 256 * 1024
"""The longest JSON of the server state's values."""


@dataclass(frozen=True)
class ProgramAggregate:
    """What a program left: the model in the base model's dtypes, and the server state's tensors and values."""

    model: Tensors
    state: Tensors
    values: dict[str, Any]


def write_task(
    params: Mapping[str, Any], values: Mapping[str, Any], contributions: Sequence[PlannedContribution]
) -> bytes:
    """What the program is told: the strategy's parameters, the server state's values, and the headers of the updates."""
    updates = [
        {
            "num_samples": each.num_samples,
            "steps": each.steps,
            "metrics": each.metrics,
            "slot": number if each.slot is None else each.slot,
            "staleness": each.staleness,
            "base": each.base,
        }
        for number, each in enumerate(contributions)
    ]
    return json.dumps({"params": params, "state": values, "updates": updates}).encode()


def read_aggregate(stdout: bytes, files: Mapping[str, bytes], expected: Specs) -> ProgramAggregate:
    """Read what a program left.

    Args:
        stdout: its standard output.
        files: what it left in ``/out``.
        expected: of the base model.

    Raises:
        UnprocessableError: it is not an aggregate; the text names the field or tensor.
    """
    try:
        fields = decode_trusted(stdout)
    except MalformedMessageError as error:
        begin = stdout[:200].decode(errors="replace")
        raise UnprocessableError(
            f"its standard output is not an aggregate: {error}; it begins {begin!r}"
        ) from None
    values = fields.get("state", {})
    if not isinstance(values, dict):
        raise UnprocessableError("state: must be an object of JSON values")
    size = len(json.dumps(values))
    if size > MAX_VALUES_BYTES:
        raise UnprocessableError(
            f"state: its JSON values have {size} bytes, more than the limit of {MAX_VALUES_BYTES}; keep numbers as arrays"
        )
    model = _read_model(files, fields)
    try:
        check_shapes(model, shapes_of(expected))
    except TensorError as error:
        raise UnprocessableError(f"its model: {error}") from None
    in_dtypes = {name: cast(model[name], DTYPES[spec.dtype], name) for name, spec in expected.items()}
    return ProgramAggregate(in_dtypes, _read_file(files, "state"), values)


def cast(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """An array in another dtype: integers rounded to the nearest, a half to the even one.

    Raises:
        UnprocessableError: a number does not fit.
    """
    if dtype.kind == "b":
        return array.astype(bool)
    if is_integer(dtype):
        rounded = array if is_integer(array.dtype) or array.dtype.kind == "b" else np.rint(array)
        least, most = bounds(dtype)
        if rounded.size and not (least <= rounded.min() and rounded.max() <= most):
            raise UnprocessableError(f"its model: {name!r} has a number that {dtype} cannot hold")
        return rounded.astype(dtype)
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    if found.size and not np.isfinite(found).all():
        raise UnprocessableError(f"its model: {name!r} has a number that is not finite in {dtype}")
    return found


def _read_model(files: Mapping[str, bytes], fields: Mapping[str, Any]) -> Tensors:
    """The model: a file, or nested lists in the document."""
    if "model.safetensors" in files or "model" not in fields:
        found = _read_file(files, "model")
        if not found:
            raise UnprocessableError(
                "it left no model: neither /out/model.safetensors, nor 'model' on standard output"
            )
        return found
    try:
        return from_json(fields["model"])
    except TensorError as error:
        raise UnprocessableError(f"its model: {error}") from None


def _read_file(files: Mapping[str, bytes], name: str) -> Tensors:
    content = files.get(f"{name}.safetensors")
    if content is None:
        return {}
    try:
        return from_safetensors(content)[0]
    except TensorError as error:
        raise UnprocessableError(f"/out/{name}.safetensors: {error}") from None
