"""docs/guide.md, command by command: each is run as it is written, and shows what the page says."""

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.stack.ports import GUIDE_PORTS
from support import go_program
from support.page import Command, Shell, matches, read_page
from support.reader import Reader

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide.md"
NEEDED = ("bash", "curl", "jq", "mosquitto_pub")

LEFT_OUT = Counter(
    {
        "the test of this page runs in what it makes": 1,
        "needs an account at ghcr.io": 2,
        "needs a container engine": 3,
        "follows until Ctrl-C": 1,
    }
)
"""Blocks that are not run, by their reason, and how many there may be of each."""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    for name in ("programs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{Path(go_program.go_command()).parent}:{os.environ['PATH']}",
        "GOCACHE": str(go_program.CACHE),
        "GOFLAGS": "-trimpath",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
    }
    following = Reader("docs/guide.md", tmp_path, environment)
    try:
        yield following
    finally:
        following.close()


@pytest.mark.timeout(240)
def test_every_command_does_what_the_guide_says(reader: Reader) -> None:
    for command in read_page(GUIDE).commands:
        reader.follow(command)
    assert reader.up is not None
    for log in (reader.up.folder / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log.name


def test_what_is_not_run_is_what_cannot_be() -> None:
    page = read_page(GUIDE)
    assert Counter(page.left_out) == LEFT_OUT
    assert len(page.commands) > 40


def test_the_guides_ports_are_those_of_a_stack() -> None:
    text = GUIDE.read_text()
    shown = {int(port) for port in re.findall(r"(?:localhost|127\.0\.0\.1):(\d+)", text)}
    assert shown <= set(GUIDE_PORTS.values())


@pytest.mark.parametrize(
    ("shown", "expected", "right"),
    [
        ("a\nb\nc\n", "a\n…\nc\n", True),
        ("a\nc\n", "a\n…\nc\n", True),
        ("a\nb\nc\n", "a\nc\n", False),
        ("a b c\n", "a…c\n", True),
        ("a\nc\n", "a…c\n", False),
        ("a\nb\n", "a\n", False),
        ("", "", True),
        ("", "a\n", False),
        ('{"w":[0,0,0]}', '{"w":[0,0,0]}\n', True),
        ("anything\nat all\n", "…\n", True),
    ],
)
def test_what_is_shown_is_compared_line_by_line(shown: str, expected: str, right: bool) -> None:
    assert matches(shown, expected) is right


def test_a_command_that_fails_or_shows_something_else_is_found(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": os.environ["PATH"]})
    try:
        assert shell.run("false; true") == ("", "false ended with 1")
        assert shell.run("false || echo no") == ("no\n", "")
        assert shell.run("x=1\n(exit 3)\necho $x")[1].endswith("ended with 3")
        assert shell.run("echo $x; printf y") == ("1\ny", "")
    finally:
        shell.close()
    page = tmp_path / "page.md"
    page.write_text("```bash\necho a\n```\n\n```text\na\n```\n<!-- not run: why -->\n```console\n$ x\n```\n")
    assert read_page(page).commands == [Command("echo a", "a\n", 2)]
    assert read_page(page).left_out == ["why"]
    page.write_text("```text\na\n```\n")
    with pytest.raises(ValueError, match="what shows"):
        read_page(page)
    page.write_text("```sh\necho\n```\n")
    with pytest.raises(ValueError, match="blocks are"):
        read_page(page)
