"""Tables of text that stay readable: a line a row, and no cell is ever cut or broken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from propeller.cli.terminal import escape
from propeller.process.control_characters import escape_line

Row = Sequence[str]
"""The texts of a row, one a column, as they are: not markup."""

_LARGE = 1e7
"""From here on a number is shown in scientific notation: training that diverges gets to numbers of a hundred digits."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its heading.
        right: its texts end in line: numbers.
        spare: 0 if it is always shown; else it is left out if there is nothing in it, and where a terminal is too narrow: the
            highest first.
    """

    name: str
    right: bool = False
    spare: int = 0


def format_number(value: float, digits: int = 4) -> str:
    """A number with so many decimals; in scientific notation where it is too large for them to mean anything."""
    return f"{value:.{digits}f}" if abs(value) < _LARGE else f"{value:.{digits}e}"


def print_rows(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print rows under their columns; characters that act on a terminal are escaped.

    A terminal that is too narrow gets as many columns as fit, and the names of the others. Where the output is a file or a
    pipe, there is everything.
    """
    rows = [[escape_line(text) for text in row] for row in rows]
    shown = [at for at, column in enumerate(columns) if not column.spare or any(row[at] for row in rows)]
    left_out = []
    while not _fits(console, _table(columns, rows, shown)):
        last = max(shown, key=lambda at: columns[at].spare)
        if not columns[last].spare:
            break
        shown.remove(last)
        left_out.append(last)
    table = _table(columns, rows, shown)
    console.width = max(console.width, _width(console, table))
    console.print(table)
    if left_out:
        names = ", ".join(columns[at].name for at in sorted(left_out))
        console.print(f"[dim]no room for: {escape(names)}[/]", soft_wrap=True)


def fits(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> bool:
    """Whether all columns have room."""
    return _fits(console, _table(columns, rows, range(len(columns))))


def print_fields(console: Console, fields: Mapping[str, str | None]) -> None:
    """Print texts beside their names, a line each; those that are empty are left out."""
    shown = {name: text for name, text in fields.items() if text}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        console.print(f"[dim]{name:<{width}}[/]  {escape(text)}", soft_wrap=True)


def _table(columns: Sequence[Column], rows: Sequence[Row], shown: Sequence[int]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for at in shown:
        justify = "right" if columns[at].right else "left"
        table.add_column(escape(columns[at].name), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(escape(row[at]) for at in shown))
    return table


def _fits(console: Console, table: Table) -> bool:
    return not console.is_terminal or _width(console, table) <= console.width


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=1_000_000), table).maximum
