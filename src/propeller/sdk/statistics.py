"""Statistics of the devices' data without training: what to ask for, and what came of it (docs/statistics.md)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.data.programs.heavy_hitters import HeavyHitters
from propeller.errors import InvalidError
from propeller.sdk.experiment import Experiment

PROGRAM = "propeller/column_statistics.py"
"""The included program."""

_PATTERNS = {
    "minimum": ["*.min"],
    "maximum": ["*.max", "*.centre", "*.low", "*.high"],
    "cells": ["*"],
}
"""Which tensors are extremes, and which are left out where few devices have them: fields of the strategy."""

_WHOLE = ("count", "missing")
_NUMBERS = ("sum", "min", "max", "centre", "squares", "low", "high")


@dataclass(frozen=True)
class ColumnStatistics:
    """What is known of one column over all devices; ``None`` and empty where it was not asked, or no record has a number.

    Attributes:
        count: records with a number.
        missing: records without one.
        mean: of the numbers.
        variance: their mean squared difference to the mean.
        minimum: the smallest: that of one record.
        maximum: the largest: that of one record.
        edges: the ends of the histogram's parts, ``[n + 1]``, ascending.
        bins: how many numbers are in each part, ``[n]``; 0 where too few devices have some, as ``missing``.
        hitters: the frequent values of a column of texts or integers, with how often each occurs or somewhat more.
    """

    count: int | None = None
    missing: int | None = None
    mean: float | None = None
    variance: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    edges: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    hitters: Sequence[tuple[str, int]] = ()

    def quantile(self, share: float) -> float:
        """The number below which so much of all is, by the histogram: off by at most the width of one part, where no part is hidden.

        Raises:
            InvalidError: the share is not from 0 to 1, or there is no histogram.
        """
        if not 0 <= share <= 1:
            raise InvalidError(f"share: is {share}; it is from 0 to 1")
        total = int(self.bins.sum())
        if not total:
            raise InvalidError(
                "bins: there is no histogram, or each part of it is from too few devices; ask for bins"
            )
        below = np.concatenate([[0], np.cumsum(self.bins)])
        at = min(
            int(np.searchsorted(below, share * total, side="right")) - 1, int(np.flatnonzero(self.bins)[-1])
        )
        inside = (share * total - below[at]) / self.bins[at] if self.bins[at] else 0.0
        return float(self.edges[at] + min(inside, 1.0) * (self.edges[at + 1] - self.edges[at]))


def statistics_model(
    columns: Iterable[str] = (), *, bins: int = 32, extremes: bool = True, hitters: Iterable[str] = ()
) -> dict[str, npt.NDArray[Any]]:
    """The first model of an experiment that asks for statistics.

    Args:
        columns: of numbers, as ``age``, or ``x[3]`` for a place in lists.
        bins: parts of the histogram; 0: none.
        extremes: whether the smallest and the largest number are asked for.
        hitters: columns of texts or integers, whose frequent values are asked for.
    """
    model: dict[str, npt.NDArray[Any]] = {}
    for column in columns:
        model |= {f"{column}.{name}": np.zeros((), np.int64) for name in _WHOLE}
        numbers = [name for name in _NUMBERS if extremes or name not in {"min", "max"}]
        model |= {f"{column}.{name}": np.zeros((), np.float64) for name in numbers}
        if bins:
            model[f"{column}.bins"] = np.zeros(bins, np.int64)
    for column in hitters:
        model[f"{column}.sketch"] = np.zeros(HeavyHitters().shape, np.int64)
    if not model:
        raise InvalidError("columns: name one or more, or hitters")
    return model


def statistics_experiment(
    columns: Iterable[str] = (),
    *,
    bins: int = 32,
    extremes: bool = True,
    hitters: Iterable[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    min_devices: int = 3,
    **fields: Any,
) -> Experiment:
    """Two rounds that ask devices for statistics; ``read_statistics`` reads the model that comes of it.

    Args:
        columns: as in ``statistics_model``, as the next three.
        bins: parts of the histogram.
        extremes: whether the smallest and the largest number are asked for; without them, ``ranges`` has the columns'.
        hitters: columns of texts or integers.
        ranges: of columns' histograms; of others it is from the smallest to the largest number.
        min_devices: of fewer nothing is published.
        fields: further ones of the ``Experiment``.

    Raises:
        InvalidError: a field is wrong.
    """
    columns = list(columns)
    lacking = [column for column in columns if bins and not extremes and column not in (ranges or {})]
    if lacking:
        raise InvalidError(f"ranges: {lacking[0]!r} has none, and without extremes a histogram needs one")
    model = statistics_model(columns, bins=bins, extremes=extremes, hitters=hitters)
    patterns = {
        field: [pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in model)]
        for field, patterns in _PATTERNS.items()
    }
    given: dict[str, Any] = {
        "program": PROGRAM,
        "rounds": 2,
        "strategy": {"name": "sum", **patterns, "min_devices": min_devices},
        "model": model,
        "hyperparams": {"ranges": {name: list(ends) for name, ends in ranges.items()}} if ranges else None,
        "min_updates": min_devices,
    }
    return Experiment(**{**given, **fields})


def read_statistics(model: Mapping[str, Any]) -> dict[str, ColumnStatistics]:
    """The statistics of each column, from the model of an experiment's last round."""
    columns = dict.fromkeys(name.rpartition(".")[0] for name in model)
    return {
        column: _read(column, {name: np.asarray(array) for name, array in model.items()})
        for column in columns
    }


def _read(column: str, model: Mapping[str, npt.NDArray[Any]]) -> ColumnStatistics:
    def number(name: str) -> Any:
        found = model.get(f"{column}.{name}")
        return None if found is None else found.item()

    def whole(name: str) -> int | None:
        found = number(name)
        return None if found is None else int(found)

    count, bins, sketch = whole("count"), model.get(f"{column}.bins"), model.get(f"{column}.sketch")
    # A device whose sum is 0 sends 5e-324: a multiple of that is 0.
    mean, squares = (round(number(name) / count, 300) if count else None for name in ("sum", "squares"))
    return ColumnStatistics(
        count,
        whole("missing"),
        mean,
        None if mean is None or squares is None else max(squares - (mean - number("centre")) ** 2, 0.0),
        number("min") if count else None,
        number("max") if count else None,
        np.zeros(0) if bins is None else np.linspace(number("low"), number("high"), bins.size + 1),
        np.zeros(0, np.int64) if bins is None else bins.astype(np.int64),
        () if sketch is None else _hitters(sketch.astype(np.int64)),
    )


def _hitters(sketch: npt.NDArray[Any]) -> list[tuple[str, int]]:
    """Those of at least ``4 N / width`` of all ``N``: the error of a count may be as large as rarer ones."""
    maker, total = HeavyHitters.of_shape(sketch.shape), int(sketch[0, :, 0].sum())
    return maker.find(sketch.tolist(), max(math.ceil(4 * total / maker.width), 1))
