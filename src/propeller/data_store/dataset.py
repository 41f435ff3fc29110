"""What a dataset must be to be stored."""

import math
from typing import Any

from propeller.data_store.samples import SCHEMA
from propeller.errors import InvalidError


def checked(proplet_id: str, dataset: dict[str, Any]) -> dict[str, Any]:
    """The dataset as it is stored: its ids are the proplet's, its size is counted, its other fields are kept.

    Datasets of the demo's schema (also: of none) hold samples ``{"x": [numbers], "y": number}`` of one length. One that names
    another schema is its program's own affair: its ``data`` must be a list, and nothing more is asked.

    Raises:
        InvalidError: naming what is wrong, and in which sample.
    """
    schema = dataset.get("schema") or SCHEMA
    data = dataset.get("data")
    if not isinstance(schema, str):
        raise InvalidError("schema: must be text")
    if not isinstance(data, list):
        raise InvalidError('data: must be a list of samples, as [{"x": [0.1, 0.2], "y": 1}]')
    if schema == SCHEMA:
        _check_samples(data)
    return {**dataset, "schema": schema, "proplet_id": proplet_id, "client_id": proplet_id, "size": len(data)}


def _check_samples(data: list[Any]) -> None:
    features: int | None = None
    for number, sample in enumerate(data):
        x = sample.get("x") if isinstance(sample, dict) else None
        if not isinstance(x, list) or not x or not all(map(_is_number, x)):
            raise InvalidError(f"data[{number}].x: must be a list of finite numbers")
        if not _is_number(sample.get("y")):
            raise InvalidError(f"data[{number}].y: must be a finite number")
        if features is None:
            features = len(x)
        if len(x) != features:
            raise InvalidError(f"data[{number}].x: has {len(x)} numbers, data[0].x has {features}")


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
