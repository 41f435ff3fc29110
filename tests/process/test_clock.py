"""Time that nobody sets."""

import os
import time
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from propeller.process import clock
from propeller.process.clock import SteadyClock, steady_now, steady_time


def test_it_is_the_wall_clock_until_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    steady, real = SteadyClock(), time.time
    assert abs(steady.time() - real()) < 1
    with capture_logs() as logs:
        for jump in (3600.0, 3600.0, -86400.0, 0.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            assert abs(steady.time() - real()) < 1
    assert [line["seconds"] for line in logs] == [3600, -86400, 0]
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    steady.restart()
    assert abs(steady.time() - real() - 3600) < 1


def test_it_never_goes_back() -> None:
    steady = SteadyClock()
    times = [steady.time() for _ in range(1000)]
    assert times == sorted(times)


def test_a_forked_process_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    before = steady_time()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(clock.steady_time()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = float(os.read(read, 100))
    os.close(read)
    os.close(write)
    assert 7100 < told - before < 7300
    assert abs((steady_now() - datetime.now(UTC)).total_seconds()) < 1
