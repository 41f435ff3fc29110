"""What is shown of others' texts in tables, fields, lines and markup: only rich's own sequences reach the terminal."""

import io
import re

import pytest
from rich.text import Text

from propeller.cli.tables import Column, print_fields, print_rows
from propeller.cli.terminal import Terminal, escape

EVIL = "a\x1b[2J\x1b]52;c;cm0=\x07\x9b31m\x7f\u202e\nb"
OWN = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = Terminal()
    shown.file = io.StringIO()
    shown.width = 300
    return shown


def said(terminal: Terminal) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return OWN.sub("", terminal.file.getvalue())


def test_every_way_to_show_a_text(terminal: Terminal) -> None:
    print_rows(terminal, (Column("name"),), [(EVIL,)])
    print_fields(terminal, {"reason": EVIL})
    terminal.print(f"[red]✗[/] {escape(EVIL)}")
    assert said(terminal).count("\n") == 4  # a heading, and a line each
    terminal.print(EVIL, markup=False)
    terminal.print(Text(EVIL, "bold"))
    text = said(terminal)
    assert text.count(r"\u009b31m\u007f\u202e") == 5
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\x1b[" in terminal.file.getvalue()  # type: ignore[attr-defined]  # its own colours are there
