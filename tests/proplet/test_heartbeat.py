"""The file that a container's health check reads."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from propeller.process.probe import NotWellError, probe
from propeller.proplet.heartbeat import Heartbeat
from support.nats import open_broker
from support.net import eventually
from support.proplet import Peers, Services, process, settings


def well(folder: Path) -> bool:
    """What the health check says."""
    try:
        probe(f"file:{folder / 'heartbeat'}")
    except NotWellError:
        return False
    return True


def test_it_holds_for_three_intervals(tmp_path: Path) -> None:
    Heartbeat(tmp_path, 10).mark()
    until = float((tmp_path / "heartbeat").read_text())
    assert until == pytest.approx(time.time() + 30, abs=5)
    assert [file.name for file in tmp_path.iterdir()] == ["heartbeat"]


def test_what_an_earlier_process_said_is_forgotten(tmp_path: Path) -> None:
    beat = Heartbeat(tmp_path, 10)
    beat.clear()
    beat.mark()
    assert well(tmp_path)
    beat.clear()
    assert not well(tmp_path)


def test_a_disk_that_takes_no_more_stops_no_heartbeat(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "not there", 10).mark()
    assert not well(tmp_path / "not there")


async def test_it_follows_the_connection_to_the_broker(tmp_path: Path) -> None:
    services, folder = Services(), tmp_path / "state"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(services.running())
        with open_broker(tmp_path / "broker") as port:
            peers = Peers(port)
            await stack.enter_async_context(peers.running())
            chosen = settings(peers, services, folder, port, liveliness_interval=0.2)
            stack.enter_context(process(chosen))
            await eventually(lambda: well(folder), what="it beats")
        await eventually(lambda: not well(folder), what="nobody takes its heartbeats")
        with open_broker(tmp_path / "broker", port):
            await eventually(lambda: well(folder), timeout=30, what="it beats again")
