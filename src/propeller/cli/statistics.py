"""``propeller statistics``: what the devices' data looks like, without a device's own numbers leaving it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from propeller.cli.connection import Target
from propeller.cli.tables import Column, print_rows
from propeller.cli.terminal import Terminal, escape
from propeller.errors import InvalidError
from propeller.sdk.statistics import ColumnStatistics, read_statistics, statistics_experiment

_NUMBERS = (
    Column("column"),
    *(Column(name, right=True) for name in ("count", "missing", "mean", "deviation")),
    *(
        Column(name, right=True, spare=spare)
        for name, spare in (("min", 1), ("25 %", 3), ("median", 2), ("75 %", 3), ("max", 1))
    ),
)
_HITTERS = (Column("column"), Column("value"), Column("at most", right=True))
_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; ``ranges`` as ``COLUMN=LOW:HIGH``."""

    columns: Sequence[str]
    hitters: Sequence[str]
    bins: int
    extremes: bool
    ranges: Sequence[str]
    min_devices: int


def show_statistics(target: Target, asked: Asked, experiment: str | None, *, as_json: bool) -> None:
    """Ask the devices, or read what an experiment has asked, and print it.

    Raises:
        PropellerError: too few devices answered, or a field is wrong.
    """
    with target.connect() as fl:
        if experiment is None:
            described = statistics_experiment(
                asked.columns,
                bins=asked.bins,
                extremes=asked.extremes,
                hitters=asked.hitters,
                ranges=dict(map(_read_range, asked.ranges)) or None,
                min_devices=asked.min_devices,
                name="statistics",
            )
            with Terminal(stderr=True).status("Asking the devices …"):
                handle = fl.run(described)
                handle.wait()
        else:
            handle = fl.experiment(experiment)
        found = read_statistics(handle.model())
    if as_json:
        print(json.dumps({column: _to_json(one) for column, one in found.items()}))
        return
    console = Terminal()
    numbers = [(column, one) for column, one in found.items() if one.count is not None]
    if numbers:
        print_rows(console, _NUMBERS, [_number_row(column, one) for column, one in numbers])
    hitters = [(column, value, str(count)) for column, one in found.items() for value, count in one.hitters]
    if hitters:
        if numbers:
            console.print()
        print_rows(console, _HITTERS, hitters)
    for column, one in found.items():
        if one.count == 0:
            console.print(
                f"{escape(column)}: no device has a number in a column of this name; programs are given those of the data's files"
            )
        if one.count is None and not one.hitters:
            console.print(f"{escape(column)}: no value is frequent enough, or too few devices have it")


def _read_range(text: str) -> tuple[str, tuple[float, float]]:
    column, _, ends = text.rpartition("=")
    low, _, high = ends.partition(":")
    try:
        return column, (float(low), float(high))
    except ValueError:
        raise InvalidError(f"--range: {text!r} is not COLUMN=LOW:HIGH, as age=0:120") from None


def _number_row(column: str, one: ColumnStatistics) -> tuple[str, ...]:
    deviation = None if one.variance is None else one.variance**0.5
    quantiles = [one.quantile(share) if one.bins.sum() else None for share in _SHARES]
    shown = (one.mean, deviation, one.minimum, *quantiles, one.maximum)
    return (
        column,
        str(one.count),
        str(one.missing),
        *("" if each is None else f"{each:.6g}" for each in shown),
    )


def _to_json(one: ColumnStatistics) -> Mapping[str, Any]:
    return {
        "count": one.count,
        "missing": one.missing,
        "mean": one.mean,
        "variance": one.variance,
        "minimum": one.minimum,
        "maximum": one.maximum,
        "edges": one.edges.tolist(),
        "bins": one.bins.tolist(),
        "quantiles": {str(share): one.quantile(share) for share in _SHARES} if one.bins.sum() else {},
        "hitters": [list(each) for each in one.hitters],
    }
