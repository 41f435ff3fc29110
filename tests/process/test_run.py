"""A real process: signals end it with 0, what cannot start says so in one line."""

import signal
import subprocess
import sys

import pytest

HEAD = """
import asyncio, sys
from propeller.process import logs
from propeller.errors import StartError
from propeller.process.run import run
from propeller.process.settings import SettingsError, ServiceSettings
from pydantic import Field

class Settings(ServiceSettings):
    url: str = Field(alias="X_SURELY_UNSET")

async def until_stopped(stop):
    print("ready", flush=True)
    await stop.wait()
    await asyncio.sleep(0.05)
    print("closed", flush=True)

async def hang(stop):
    print("ready", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    await asyncio.Event().wait()

async def raises(error):
    raise error

async def in_group(stop):
    async with asyncio.TaskGroup() as group:
        group.create_task(raises(StartError("port 1 is in use")))

logs.configure("svc")
"""


def start(main: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", f"{HEAD}\nsys.exit(run({main}))"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with start("until_stopped") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "closed\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_what_hangs(number: signal.Signals) -> None:
    with start("hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(number)
        assert process.wait(timeout=10) == 130


def test_a_service_that_ends_by_itself() -> None:
    with start("lambda stop: asyncio.sleep(0)") as process:
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("main", "says"),
    [
        ("lambda stop: raises(StartError('port 1 is in use'))", "error: port 1 is in use\n"),
        ("in_group", "error: port 1 is in use\n"),
        (
            "lambda stop: raises(Settings.load())",
            "error: settings to correct in the environment:\n  X_SURELY_UNSET: not set\n",
        ),
    ],
)
def test_what_cannot_start_says_why_and_exits_with_1(main: str, says: str) -> None:
    with start(main) as process:
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (1, "", says)


def test_an_unforeseen_error_is_logged_and_exits_with_1() -> None:
    with start("lambda stop: raises(KeyError('x'))") as process:
        _out, err = process.communicate(timeout=10)
    logged, said = err.splitlines()
    assert process.returncode == 1
    assert '"msg": "the service failed"' in logged
    assert said == "error: KeyError: 'x'"
