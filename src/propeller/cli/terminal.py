"""The terminal of a command: what services, devices and programs say is shown, and does nothing to it."""

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape as escape_markup
from rich.segment import Segment

from propeller.process.control_characters import escape_controls, escape_line

FIRST_BUILD = "the first one makes the Python runtime: 20 s, or minutes on a slow machine"
"""What to say where a program in Python is built."""


def escape(text: str) -> str:
    """Another's text, for a line of markup: on that line, and nothing in it acts."""
    return escape_markup(escape_line(text))


def print_note(line: str) -> None:
    """Say something beside what a command prints: on standard error, on one line, and nothing in it acts."""
    print(escape_line(line), file=sys.stderr)


class Terminal(Console):
    """rich's console; the only control sequences that it writes are its own.

    Texts are escaped here after they are laid out, so a text of another's that is part of a table or a line is better
    escaped before (``escape``): this is for those that nobody thought of.
    """

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(highlight=False, stderr=stderr, soft_wrap=soft_wrap)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)
