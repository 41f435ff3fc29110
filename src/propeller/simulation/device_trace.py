"""A recorded trace of devices: how long each took for one task after the other, read from a CSV file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from propeller.errors import InvalidError
from propeller.fl.selection import natural_order
from propeller.protocol.strict import nearest_names
from propeller.samples.csv_files import read_rows

T = TypeVar("T")

_COLUMNS = ("client", "seconds", "bytes_per_s", "drops_out")
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")
_MAX_NAMED = 10
"""Wrong lines that an error names."""


@dataclass(frozen=True)
class TraceRow:
    """What a device did with a task; ``bytes_per_s`` and ``drops_out`` are ``None`` where the trace has no such column."""

    seconds: float
    bytes_per_s: float | None = None
    drops_out: bool | None = None


@dataclass(frozen=True)
class DeviceTrace:
    """What was recorded: for each device the rows of its tasks.

    Clients replay the devices in the natural order of their names: the first client the first device, and so on; more clients than
    devices begin again with the first. Each replays its rows in their order, and then from its first one again.
    """

    devices: Sequence[Sequence[TraceRow]]

    @classmethod
    def read(cls, path: Path) -> "DeviceTrace":
        """Read a CSV file with the names of columns in its first line.

        ``seconds`` is what a task took. Others may be left out: ``client``, the device (without it each line is a device of its own),
        ``bytes_per_s`` of its connection, each way, and ``drops_out``, 1 or true if it never sent an update.

        Raises:
            InvalidError: it cannot be read so; the text names the lines.
        """
        return cls(read_devices(path, "devices.trace", _COLUMNS, {"seconds": "what each task took"}, _decode))

    @property
    def says_who_drops_out(self) -> bool:
        """Whether it was recorded which devices drop out."""
        return self.devices[0][0].drops_out is not None

    def row(self, client: int, task: int) -> TraceRow:
        """What a client's device does with a task; ``task`` is how many it has had before."""
        device = self.devices[client % len(self.devices)]
        return device[task % len(device)]


def read_devices(
    path: Path,
    where: str,
    columns: Sequence[str],
    needed: Mapping[str, str],
    decode: Callable[[Mapping[str, str]], T],
) -> list[list[T]]:
    """The lines of each device in a CSV file, the devices in the natural order of their names.

    Args:
        path: the file, with the names of columns in its first line.
        where: the field that names it, for errors.
        columns: that there may be; ``client`` names the device. Without it each line is a device of its own.
        needed: those of them that there must be, and what to add where one is missing.
        decode: a line, by column; raises ``ValueError``.

    Raises:
        InvalidError: it cannot be read so; the text names the lines.
    """
    try:
        names, rows, lines = read_rows(path, where, "row")
    except OSError as error:
        raise InvalidError(f"{where}: {path}: {error.strerror}: name a CSV file") from None
    for name in names:
        if name not in columns:
            near = nearest_names(name, columns)
            hint = f"; did you mean {near[0]!r}? There" if near else "; there"
            raise InvalidError(
                f"{where}: {path}, line 1: there is no column {name!r} of a trace{hint} are {', '.join(columns)}"
            )
    for name, remedy in needed.items():
        if name not in names:
            raise InvalidError(f"{where}: {path}, line 1: has no column {name}: add {remedy}")
    found: dict[str, list[T]] = {}
    wrong: list[str] = []
    for values, line in zip(rows, lines, strict=True):
        fields = {name: value.strip() for name, value in zip(names, values, strict=True)}
        try:
            _check_name(fields)
            row = decode(fields)
        except ValueError as error:
            wrong.append(f"line {line}: {error}")
            continue
        found.setdefault(fields.get("client", str(line)), []).append(row)
    if wrong:
        more = f"; and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        raise InvalidError(f"{where}: {path}: {'; '.join(wrong[:_MAX_NAMED])}{more}")
    return [found[name] for name in sorted(found, key=natural_order)]


def _check_name(fields: Mapping[str, str]) -> None:
    if fields.get("client") == "":
        raise ValueError("client is empty: name the device, or leave the column out")


def _decode(fields: Mapping[str, str]) -> TraceRow:
    seconds = read_number(fields["seconds"])
    if seconds is None:
        raise ValueError(f"seconds is {fields['seconds']!r:.40}: write a number of 0 or more")
    speed = None
    if "bytes_per_s" in fields:
        speed = read_number(fields["bytes_per_s"])
        if not speed:
            raise ValueError(f"bytes_per_s is {fields['bytes_per_s']!r:.40}: write a number above 0")
    drops_out = None
    if "drops_out" in fields:
        text = fields["drops_out"].casefold()
        if text not in (*_YES, *_NO):
            raise ValueError(f"drops_out is {fields['drops_out']!r:.40}: write 1 or 0, or true or false")
        drops_out = text in _YES
    return TraceRow(seconds, speed, drops_out)


def read_number(text: str) -> float | None:
    """A finite number of 0 or more; ``None`` if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
