"""The exit codes that docs/reference.md has, beside those of commands on a stack, which their own tests look at."""

from pathlib import Path

import pytest

from support.stack import propeller


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--version", 0),
        ("status -h", 0),
        ("status", 1),
        ("status --json", 1),
        ("doctor", 1),
        ("experiments", 1),
        ("logs", 1),
        ("run nothing.toml", 1),
        ("try nothing.py", 1),
        ("serve nothing", 1),
        ("", 2),
        ("nothing", 2),
        ("status --nothing", 2),
        ("run", 2),
    ],
)
def test_what_a_command_exits_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)  # where no stack is
    done = propeller(*command.split())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 1 and not done.stdout:
        assert done.stderr.startswith("error: ")
