"""A page of documentation as a shell session: its blocks in order, and what each command should show.

A ``bash`` block is run as a whole, and a ``text`` block right after it is what it should show. In a ``console`` block
each ``$ `` begins a command, and the lines up to the next are what that should show. ``…`` stands for anything in a line, and alone
for any lines. A ``toml`` block is a file, for the page's own test. ``<!-- not run: reason -->`` before a block leaves it out.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<kind>bash|console|text|python|toml)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Command:
    """What is run, the lines that it should show (``None``: anything), and where it stands."""

    text: str
    expected: str | None
    line: int


@dataclass(frozen=True)
class Page:
    """The commands of a page and, for each block that is not run, why."""

    commands: list[Command]
    left_out: list[str]


def read_page(file: Path) -> Page:
    """The commands of a page.

    Raises:
        ValueError: a fence of another kind, Python without a reason, or text that should be shown by nothing.
    """
    text = file.read_text()
    commands: list[Command] = []
    left_out: list[str] = []
    previous_end = -1
    fences = 0
    for block in _BLOCK.finditer(text):
        fences += 2
        line = text.count("\n", 0, block.start("body")) + 1
        kind, body = block["kind"], block["body"]
        if block["reason"]:
            left_out.append(block["reason"])
        elif kind == "toml":
            pass
        elif kind == "python":
            raise ValueError(f"{file.name}:{line}: Python is not run from a page: say where it is")
        elif kind == "bash":
            commands.append(Command(body.rstrip("\n"), None, line))
            previous_end = block.end()
        elif kind == "console":
            commands += _commands(body, line)
        elif text[previous_end : block.start()].strip() or not commands:
            raise ValueError(f"{file.name}:{line}: what shows this text?")
        else:
            last = commands.pop()
            commands.append(Command(last.text, body, last.line))
    if len(re.findall(r"^\s*```", text, re.MULTILINE)) != fences:
        raise ValueError(f"{file.name}: blocks are bash, console, text or toml, and begin at the margin")
    return Page(commands, left_out)


def _commands(body: str, line: int) -> Iterator[Command]:
    for part in re.split(r"^(?=\$ )", body, flags=re.MULTILINE):
        if part:
            command, _, shown = part.partition("\n")
            yield Command(command.removeprefix("$ "), shown, line)
            line += part.count("\n")


def matches(shown: str, expected: str) -> bool:
    """Whether output is as a page shows it; spaces at the ends of lines do not count."""
    pattern = ""
    for row in expected.splitlines():
        if row.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*?".join(re.escape(piece) for piece in row.strip().split("…")) + r"\n"
    lines = "".join(f"{row.strip()}\n" for row in shown.splitlines())
    return re.fullmatch(pattern, lines) is not None


class Shell:
    """One bash that runs commands one after another, as a person's does."""

    _MARK = "--- end of command ---"

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # The first command that fails where its failure is not looked at, by || or if.
        self.run("trap 'failed=${failed:-\"$BASH_COMMAND\" ended with $?}' ERR")

    def run(self, command: str) -> tuple[str, str]:
        """Run a command; gives its output and what failed in it (empty: nothing)."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(
            f"failed=\n{{ {command}\n}} < /dev/null\nprintf '\\n{self._MARK}%s\\n' \"$failed\"\n"
        )
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(self._MARK):
                return "".join(lines).removesuffix("\n"), line.removeprefix(self._MARK).strip()
            lines.append(line)
        raise AssertionError(f"bash ended in: {command}\n{''.join(lines)}")

    def close(self) -> None:
        """End it."""
        self._bash.kill()
        self._bash.communicate()
