"""docs/second-machine.md, command by command: each is run as it is written, and shows what the page says."""

import configparser
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.joined import Joined, joined
from support.net import wait_until
from support.page import Command, matches, read_page
from support.python_programs import COMPILED
from support.reader import Reader
from support.stack import propeller

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "second-machine.md"

LEFT_OUT = Counter(
    {
        "it runs already": 1,
        "needs root, and systemd": 2,
        "the test of this page reads the unit": 1,
    }
)
"""Blocks that are not run, by their reason."""

JOIN = re.compile(r"propeller join \$\(cat (?P<token>\S+)\) (?P<options>.*)")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    following = Reader("docs/second-machine.md", tmp_path, {"PROPLET_CACHE": str(COMPILED)})
    try:
        yield following
    finally:
        following.close()


def shows(device: Joined, command: Command) -> bool:
    assert device.process.poll() is None, device.output
    return matches(device.output, command.expected or "")


@pytest.mark.timeout(240)
def test_every_command_does_what_the_page_says(reader: Reader) -> None:
    commands = read_page(PAGE).commands
    at, join = next((at, found) for at, one in enumerate(commands) if (found := JOIN.match(one.text)))
    for command in commands[:at]:
        reader.follow(command)
    folder = reader.folder / "ward"
    token = (folder / join["token"]).read_text().strip()
    with joined(folder, token, *join["options"].split()) as device:
        wait_until(lambda: shows(device, commands[at]), 20, "join shows what the page says")
        wait_until(lambda: "alive" in _line_of(reader, "ward-3"), 20, "it is alive")
        for command in commands[at + 1 :]:
            reader.follow(command)


def _line_of(reader: Reader, name: str) -> str:
    shown = propeller("device", "list", "--state", str(reader.folder / ".propeller")).stdout
    return next(line for line in shown.splitlines() if line.startswith(name))


def test_what_is_not_run_is_what_cannot_be() -> None:
    page = read_page(PAGE)
    assert Counter(page.left_out) == LEFT_OUT
    assert len(page.commands) > 7


def test_the_unit_can_be_read_and_runs_a_command_of_propeller(tmp_path: Path) -> None:
    found = re.search(r"```text\n(\[Unit\].*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    unit = configparser.ConfigParser(strict=True)
    unit.read_string(found[1])
    assert unit.sections() == ["Unit", "Service", "Install"]
    program, *arguments = unit["Service"]["ExecStart"].split()
    assert program.endswith("/propeller")
    nobodys = propeller(*(one.replace("/var/lib", str(tmp_path)) for one in arguments))
    assert nobodys.returncode == 1
    assert "no device has joined on" in nobodys.stderr
