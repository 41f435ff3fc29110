"""Tables at a narrow terminal, a wide one, and in a pipe."""

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from propeller.cli.tables import Column, Row, fits, print_fields, print_rows

ID = "digits-fedadam-with-a-long-name-1f2e3d4c"
COLUMNS = (
    Column("experiment"),
    Column("state"),
    Column("rounds", right=True),
    Column("strategy", spare=1),
    Column("empty", spare=2),
    Column("best", spare=2),
    Column("started", spare=3),
)
ROWS = [
    (ID, "running", "3/20", "trimmed_mean", "", "v12 accuracy 0.9534", "11-27 18:20"),
    ("short[1]", "completed", "20/20", "fedavg", "", "", "11-27 18:20"),
]


def printed(
    width: int, columns: tuple[Column, ...] = COLUMNS, rows: Sequence[Row] = ROWS, *, terminal: bool
) -> list[str]:
    file = io.StringIO()
    print_rows(
        Console(file=file, width=width, force_terminal=terminal, highlight=False, color_system=None),
        columns,
        rows,
    )
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()]


def test_a_narrow_terminal_gets_the_columns_that_matter_and_whole_cells() -> None:
    lines = printed(80, terminal=True)
    assert lines == [
        "experiment                                state      rounds  strategy",
        f"{ID}  running      3/20  trimmed_mean",
        "short[1]                                  completed   20/20  fedavg",
        "no room for: best, started",
    ]
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(("width", "terminal"), [(200, True), (80, False), (10, False)])
def test_a_wide_terminal_and_a_pipe_get_everything(width: int, *, terminal: bool) -> None:
    lines = printed(width, terminal=terminal)
    assert len(lines) == 3
    assert lines[0].split() == ["experiment", "state", "rounds", "strategy", "best", "started"]
    assert lines[1].endswith("trimmed_mean  v12 accuracy 0.9534  11-27 18:20")


def test_what_has_no_room_at_all_is_still_whole() -> None:
    assert ID in "".join(printed(20, terminal=True))
    console = Console(file=io.StringIO(), width=20, force_terminal=True)
    assert not fits(console, COLUMNS, ROWS)
    assert fits(Console(file=io.StringIO(), width=20, force_terminal=False), COLUMNS, ROWS)


def test_columns_of_the_same_name_and_no_rows() -> None:
    columns = (Column("model"), Column("model", spare=1))
    assert printed(80, columns, [("v1", "0.5")], terminal=True) == ["model  model", "v1     0.5"]
    assert printed(80, columns, [], terminal=True) == ["model"]


def test_fields_are_not_broken() -> None:
    file = io.StringIO()
    program = "registry.example/" + "a" * 90
    print_fields(
        Console(file=file, width=40, color_system=None), {"state": "[b]", "reason": None, "program": program}
    )
    assert file.getvalue().splitlines() == ["state    [b]", f"program  {program}"]
