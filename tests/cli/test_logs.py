"""``propeller logs``: merged by time, narrowed, followed."""

import json
import subprocess
from pathlib import Path

import pytest

from support.stack import PROPELLER, propeller


@pytest.fixture
def state(tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    logs.mkdir()
    line(logs / "manager.log", "10:00:01", "first", round_id="r-1")
    line(logs / "proplet-1.log", "10:00:02", "second", round_id="r-1", level="WARNING")
    line(logs / "manager.log", "10:00:03", "third", round_id="r-10")
    with (logs / "manager.log").open("a") as stream:
        stream.write("error: plain words\n")
    return tmp_path


def line(file: Path, time: str, message: str, level: str = "INFO", **fields: str) -> None:
    with file.open("a") as stream:
        stream.write(
            json.dumps({"time": f"2026-01-01T{time}.000000Z", "level": level, "msg": message, **fields})
            + "\n"
        )


def test_lines_of_all_services_are_merged_by_time(state: Path) -> None:
    shown = propeller("logs", "--state", str(state)).stdout.splitlines()
    assert [row.split()[-2] if "=" in row else row for row in shown[:3]] == ["first", "second", "third"]
    assert "10:00:02.000 proplet-1       WARNING second  round_id=r-1" in shown
    assert shown[3].split() == ["manager", "error:", "plain", "words"]


def test_by_round_and_by_service(state: Path) -> None:
    by_round = propeller("logs", "--state", str(state), "--round", "r-1").stdout
    assert "first" in by_round
    assert "second" in by_round
    assert "third" not in by_round
    by_service = propeller("logs", "--state", str(state), "--service", "proplet-1", "--json").stdout
    assert json.loads(by_service)["msg"] == "second"


def test_the_names_of_the_container_files_do_too_and_proplet_is_all_of_them(state: Path) -> None:
    line(state / "logs" / "proplet-2.log", "10:00:05", "fourth")
    line(state / "logs" / "data-store.log", "10:00:06", "fifth")
    proplets = propeller("logs", "--state", str(state), "--service", "proplet").stdout
    assert [row.split()[3] for row in proplets.splitlines()] == ["second", "fourth"]
    for name in ("local-data-store", "data_store"):
        assert "fifth" in propeller("logs", "--state", str(state), "--service", name).stdout
    assert propeller("logs", "--state", str(state), "--service", "coordinator-http").returncode == 1


def test_no_text_of_a_program_acts_on_the_terminal(state: Path) -> None:
    evil = "\x1b]52;c;cm0=\x07\x9b2J\u202e\n10:00:09.000 manager ERROR forged"
    line(state / "logs" / "proplet-2.log", "10:00:05", evil, text=evil)
    with (state / "logs" / "proplet-2.log").open("a") as stream:
        stream.write("raw \x1b[2J\x9b31m\n")
    shown = propeller("logs", "--state", str(state), "--service", "proplet-2").stdout
    assert shown.count("\n") == 2
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
    as_json = propeller("logs", "--state", str(state), "--service", "proplet-2", "--json").stdout
    assert json.loads(as_json.splitlines()[0])["text"] == evil
    assert not set(as_json) & {"\x1b", "\x07", "\x9b", "\u202e"}


def test_what_is_not_there_is_said(state: Path, tmp_path: Path) -> None:
    unknown = propeller("logs", "--state", str(state), "--service", "nobody")
    assert unknown.returncode == 1
    assert "manager, proplet-1" in unknown.stderr
    for narrowed in ((), ("--json",), ("--service", "manager")):
        no_round = propeller("logs", "--state", str(state), "--round", "r-2", *narrowed)
        assert (no_round.returncode, no_round.stdout) == (1, "")
        assert "--round r-2: no line of manager" in no_round.stderr
    nothing = propeller("logs", "--state", str(tmp_path / "nowhere"))
    assert nothing.returncode == 1
    assert "propeller up" in nothing.stderr


def test_following_shows_what_comes_after_in_whole_lines(state: Path) -> None:
    command = [*PROPELLER, "logs", "--state", str(state), "-f", "--round", "r-3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        file = state / "logs" / "manager.log"
        whole = json.dumps(
            {"time": "2026-01-01T10:00:09Z", "level": "INFO", "msg": "fourth", "round_id": "r-3"}
        )
        with file.open("a") as stream:
            stream.write(whole[:20])
            stream.flush()
            stream.write(whole[20:] + "\n")
        assert "fourth" in process.stdout.readline()
        process.terminate()
