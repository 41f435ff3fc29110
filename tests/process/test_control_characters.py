"""Texts of others where they are shown: nothing in them acts on a terminal, and JSON keeps its values."""

import json
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.process.control_characters import escape_controls, escape_line

ACTING = st.sampled_from(
    [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029)]
    + [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF, 0xE0041)]
)
TEXTS = st.lists(st.one_of(ACTING, st.characters()), max_size=60).map("".join)


def acts(character: str) -> bool:
    """By the Unicode database, not by the list of the code."""
    return (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(character)
        in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        or character in "\u061c\u200e\u200f"
    )


@given(TEXTS)
def test_nothing_acts_and_the_rest_is_as_it_was(text: str) -> None:
    shown = escape_line(text)
    assert not any(acts(character) and character != "\t" for character in shown)
    shown.encode()  # raises for half a character
    assert escape_line(shown) == shown
    if not any(map(acts, text)) and not re.search("[\U000e0000-\U000e007f]", text):
        assert shown == text
    assert escape_controls(text).count("\n") == text.count("\n")


@given(st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_json_keeps_its_values(document: dict[str, str]) -> None:
    assert json.loads(escape_line(json.dumps(document, ensure_ascii=False))) == json.loads(
        json.dumps(document)
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
        ("\x1b]8;;http://a\x1b\\here\x1b]8;;\x1b\\", r"\u001b]8;;http://a\u001b\here\u001b]8;;\u001b" + "\\"),
        ("\x1b]52;c;cm0=\x07", r"\u001b]52;c;cm0=\u0007"),
        ("\x9b31mred\x9d52;c;cm0=\x9c", r"\u009b31mred\u009d52;c;cm0=\u009c"),
        ("loss\r\x7f 0.1", r"loss\u000d\u007f 0.1"),
        ("a\n12:00 manager ERROR", r"a\u000a12:00 manager ERROR"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\U000e0041", r"\udb40\udc41"),
        ("Zoë 模型 👩\u200d🔬\t1", "Zoë 模型 👩\u200d🔬\t1"),
        ("\x1b" * 100_000, r"\u001b" * 100_000),
    ],
)
def test_sequences(text: str, shown: str) -> None:
    assert escape_line(text) == shown


LOG = """
from propeller.process import logs
logs.configure("proplet")
said = "\\x1b[2J\\x9b31m\\x7f\\u202e\\nx"
logs.get_logger("test").info(said, device=said)
"""


def test_a_log_line_has_none() -> None:
    """In a process of its own: how this one logs is not for a test to change."""
    line = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True, check=True).stderr
    said = "\x1b[2J\x9b31m\x7f\u202e\nx"
    assert line.count("\n") == 1
    assert not any(map(acts, line.removesuffix("\n")))
    assert (json.loads(line)["msg"], json.loads(line)["device"]) == (said, said)
