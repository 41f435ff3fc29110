"""Logs: one JSON object a line whatever is logged, secrets hidden at every depth, other loggers the same way."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HEAD = """
import logging, warnings
from pathlib import Path
from propeller.process import logs

early = logs.get_logger("early")
logs.configure("svc", level={level!r}, file=Path({file!r}) if {file!r} else None)
log = logs.get_logger("part")
"""


def lines(code: str, level: str = "info", file: str = "") -> list[dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, "-c", HEAD.format(level=level, file=file) + code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == ""
    text = Path(file).read_text() if file else run.stderr
    return [json.loads(line, parse_constant=lambda name: 1 / 0) for line in text.splitlines()]


def test_a_line_has_a_time_a_level_a_message_and_its_keys() -> None:
    (line,) = lines("log.info('launched task', round_id='r-1', n=3)")
    assert list(line)[:3] == ["time", "level", "msg"]
    assert line["time"].endswith("Z")
    del line["time"]
    assert line == {
        "level": "INFO", "msg": "launched task", "round_id": "r-1", "n": 3, "component": "part", "service": "svc",
    }  # fmt: skip


def test_a_full_disk_costs_lines_and_fails_no_one() -> None:
    code = "log.info('x'); logging.warning('y'); log.error('z')"
    run = subprocess.run(
        [sys.executable, "-c", HEAD.format(level="info", file="/dev/full") + code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")


def test_loggers_made_before_configure_follow_it() -> None:
    assert lines("early.info('x')")[0]["component"] == "early"


def test_levels() -> None:
    code = "log.debug('d'); log.info('i'); log.warning('w'); log.error('e')"
    assert [line["msg"] for line in lines(code)] == ["i", "w", "e"]
    assert [line["msg"] for line in lines(code, "DEBUG")] == ["d", "i", "w", "e"]
    assert [line["msg"] for line in lines(code, "error")] == ["e"]
    assert [line["msg"] for line in lines(code, "nonsense")] == ["i", "w", "e"]


def test_secrets_are_hidden_at_every_depth() -> None:
    (line,) = lines(
        "log.info('x', password='hunter2', MANAGER_CLIENT_KEY='hunter2', access_token='hunter2', client_key='',"
        "env={'PROPLET_CLIENT_KEY': 'hunter2', 'ok': [{'api_key': 'hunter2', 'n': 1}]}, peers=({'secret': 'hunter2'},))"
    )
    assert "hunter2" not in json.dumps(line)
    assert line["password"] == "***"
    assert line["client_key"] == ""
    assert line["env"] == {"PROPLET_CLIENT_KEY": "***", "ok": [{"api_key": "***", "n": 1}]}


def test_an_exception_is_one_line() -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed', task_id='t')"
    (line,) = lines(code)
    assert (line["level"], line["msg"], line["task_id"]) == ("ERROR", "failed", "t")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
    assert "\n" in line["exception"]


def test_other_loggers_and_warnings_are_lines_too() -> None:
    code = (
        "logging.getLogger('uvicorn.error').warning('from %s', 'there')\n"
        "logging.getLogger('httpx').info('not this')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('x').exception('bad\\n')\n"
        "warnings.warn('old', DeprecationWarning, stacklevel=1)\n"
    )
    first, second, third = lines(code)
    assert (first["level"], first["msg"], first["service"]) == ("WARNING", "from there", "svc")
    assert (second["msg"], second["exception"][-16:]) == ("bad", "division by zero")
    assert "DeprecationWarning: old" in third["msg"]


def test_anything_can_be_logged() -> None:
    code = (
        "log.info('a\\nb', f=float('nan'), i=float('inf'), b=b'x', o=object(), e=ValueError('v'), d={(1, 2): {3}},"
        "s='\\ud800', u='é', t=(1, 2), p=Path('/x'), level='mine', msg='mine', time='mine')"
    )
    (line,) = lines(code)
    assert (line["msg"], line["level"], line["f"], line["u"], line["p"]) == (
        "a\nb",
        "INFO",
        "nan",
        "é",
        "/x",
    )
    assert line["d"] == {"(1, 2)": [3]}
    assert line["time"] != "mine"


def test_a_file_is_appended_to_and_read_at_once(tmp_path: Path) -> None:
    file = str(tmp_path / "logs" / "svc.log")
    assert len(lines("log.info('one', s='\\ud800')", file=file)) == 1
    crash = "log.info('two'); import os; os._exit(0)"  # not buffered: it is there though nothing was closed
    assert [line["msg"] for line in lines(crash, file=file)] == ["one", "two"]


def on_terminal(code: str, **environment: str) -> str:
    """What a terminal shows as standard error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", HEAD.format(level="info", file="") + code],
        stderr=theirs,
        env={**os.environ, **environment},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


SAID = (
    "log.info('launched', round_id='r-1', n=3); log.error('a\\x1b[2Jb', token='x'); logging.warning('other')"
)


def test_a_terminal_gets_lines_for_people() -> None:
    shown = on_terminal(SAID, NO_COLOR="1").splitlines()
    assert [re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} svc {13}(.*)", line)[1] for line in shown] == [  # type: ignore[index]
        "INFO    launched  round_id=r-1 n=3",
        r"ERROR   a\u001b[2Jb  token=***",
        "WARNING other",
    ]
    coloured = on_terminal(SAID, NO_COLOR="")
    assert "\x1b[31mERROR   a" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured).splitlines()[0].endswith("launched  round_id=r-1 n=3")


def test_what_a_line_looks_like_is_a_setting(tmp_path: Path) -> None:
    def first_line(form: str) -> str:
        environment = {"DATA_STORE_PORT": "0", "DATA_DIR": str(tmp_path), "PROPELLER_LOG_FORMAT": form}
        with subprocess.Popen(
            [sys.executable, "-m", "propeller", "serve", "data-store"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        ) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            process.terminate()
        return line

    assert json.loads(first_line("auto"))["level"]
    assert json.loads(first_line("json"))["level"]
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} data-store {6}(INFO|WARNING) ", first_line("text"))
    assert "PROPELLER_LOG_FORMAT" in subprocess.run(
        [sys.executable, "-m", "propeller", "serve", "data-store"],
        capture_output=True, text=True, check=False, env=os.environ | {"PROPELLER_LOG_FORMAT": "xml"},
    ).stderr  # fmt: skip
