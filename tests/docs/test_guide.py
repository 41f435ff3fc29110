"""docs/guide.md, command by command: each is run as it is written, and shows what the page says.

Only two things differ from what a person does: ports of the guide stand for those that were free, and ``propeller up`` runs in the
background.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from propeller.stack.ports import GUIDE_PORTS
from support import go_program
from support.net import wait_until
from support.page import Command, Shell, matches, read_page
from support.stack import PROPELLER, Up, end

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


class Reader:
    """Someone who follows the guide, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.up: Up | None = None
        for name in ("programs", "examples"):
            shutil.copytree(ROOT / name, folder / name)
        go = Path(go_program.go_command()).parent
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{go}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "GOCACHE": str(go_program.KEPT / "cache"),
            "GOTOOLCHAIN": "local",
            "GOPROXY": "off",
            **{name: os.environ[name] for name in ("PYTHONPATH", "TMPDIR") if name in os.environ},
        }
        self._shell = Shell(folder, self._environment)

    def follow(self, command: Command) -> None:
        """Run a command of the guide and look at what it shows."""
        where = f"docs/guide.md:{command.line}: {command.text}"
        if command.text.startswith("propeller up"):
            shown, failed = self._start(command.text), ""
        else:
            shown, failed = self._shell.run(self._to_own_ports(command.text))
        shown = self._to_guide_ports(shown)
        assert not failed, f"{where}\n{shown}\n{failed}"
        if command.expected is not None:
            assert matches(shown, command.expected), (
                f"{where}\n{shown}\n--- is not as shown:\n{command.expected}"
            )

    def _start(self, command: str) -> str:
        """``propeller up`` in a terminal of its own; gives what it shows until it is ready."""
        output = self.folder / "up.out"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [*PROPELLER, *command.split()[1:], "--ports", "auto"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.up = Up(self.folder / ".propeller", process, output)
        self.up.wait_ready()
        up = self.up
        wait_until(
            lambda: "Ready" in up.output or process.poll() is not None, what="up says that it is ready"
        )
        return up.output

    def close(self) -> None:
        """End the shell and the stack."""
        self._shell.close()
        if self.up is not None:
            end(self.up)

    def _to_own_ports(self, text: str) -> str:
        ports = self._ports()
        return _ports_replaced(text, lambda port: ports.get(port, port))

    def _to_guide_ports(self, text: str) -> str:
        guide = {own: port for port, own in self._ports().items()}
        return _ports_replaced(text, lambda port: guide.get(port, port))

    def _ports(self) -> dict[int, int]:
        """The guide's ports and those of the stack."""
        if self.up is None:
            return {}
        services = dict(self.up.stack["services"])
        identity = services.pop("identity")
        urls = {name.replace("_", "-"): service["url"] for name, service in services.items()}
        urls |= {f"identity-{name}": identity[name] for name in ("users", "domains", "channels", "clients")}
        ports = {GUIDE_PORTS[name]: int(url.rpartition(":")[2]) for name, url in urls.items()}
        return {**ports, GUIDE_PORTS["broker"]: int(self.up.stack["broker"]["port"])}


def _ports_replaced(text: str, other: Callable[[int], int]) -> str:
    pattern = r"(?P<before>(?:localhost|127\.0\.0\.1):|-p )(?P<port>\d{4,5})\b"
    return re.sub(pattern, lambda found: f"{found['before']}{other(int(found['port']))}", text)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    following = Reader(tmp_path)
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
