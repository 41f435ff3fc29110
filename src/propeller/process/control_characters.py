"""Characters by which a text acts on the terminal or log that shows it, made harmless where it is shown.

A program's output, a device's name or the reason of a round may hold anything: sequences that clear the screen, write the
clipboard (OSC 52) or name a link (OSC 8), line ends that look like another's log line, marks that turn the direction of
writing round (Trojan Source, Boucher and Anderson 2021). Data is kept as it came; only what is shown goes through here.
"""

import re
from typing import Final

_ACTING: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line end, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the direction of writing
    r"\u2028\u2029"  # line ends to some
    r"\ud800-\udfff"  # half of a character: cannot be printed at all
    r"\U000e0000-\U000e007f"  # tags: seen by nobody
)
_IN_TEXT: Final = re.compile(f"[{_ACTING}]")
_IN_LINE: Final = re.compile(f"[\n{_ACTING}]")


def escape_controls(text: str) -> str:
    r"""A text whose acting characters are written as JSON writes them (``\u001b``); tabs and line ends stay.

    In a JSON document it changes no value.
    """
    return _IN_TEXT.sub(_escaped, text)


def escape_line(text: str) -> str:
    """As ``escape_controls``, and on one line: for a text inside of one."""
    if text.isprintable():  # none of them is: most lines are known by that at a tenth of the cost
        return text
    return _IN_LINE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2))
