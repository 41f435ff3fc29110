"""What a proplet says of itself, and the file that a container's health check reads."""

import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from propeller.process.probe import NotWellError, probe
from propeller.proplet.presence import HeartbeatFile, device_metadata, process_metrics
from propeller.proplet.settings import PropletSettings
from propeller.protocol.topics import Kind
from support.nats import open_broker
from support.net import eventually
from support.proplet import Peers, Services, World, process, settings


async def test_it_registers_beats_and_reports(world: World) -> None:
    me = await world.join(
        liveliness_interval=0.1, metrics_interval=0.1, tags="gpu, lab", location="here", namespace="ns"
    )
    peers = world.peers
    await eventually(
        lambda: len(peers.messages(Kind.PROPLET_ALIVE)) >= 3 and peers.messages(Kind.PROPLET_METRICS)
    )
    (create,) = peers.messages(Kind.PROPLET_CREATE)
    assert (create["proplet_id"], create["namespace"]) == (me, "ns")
    metadata = create["metadata"]
    assert (metadata["directed"], metadata["device_state"]) == (True, True)
    assert metadata["liveliness_interval"] == 0.1
    assert (metadata["tags"], metadata["location"]) == (["gpu", "lab"], "here")
    assert metadata["total_memory_bytes"] > 0
    assert peers.messages(Kind.PROPLET_ALIVE)[0] == {"proplet_id": me, "status": "alive", "namespace": "ns"}
    metrics = peers.messages(Kind.PROPLET_METRICS)[0]
    assert metrics["memory_metrics"]["rss_bytes"] > 1_000_000
    sent = datetime.fromisoformat(metrics["timestamp"])
    assert abs((datetime.now(UTC) - sent).total_seconds()) < 60


@pytest.mark.parametrize("given", [{"metrics_interval": 0}, {"monitoring": False, "metrics_interval": 0.05}])
async def test_monitoring_can_be_switched_off(world: World, given: dict[str, object]) -> None:
    await world.join(liveliness_interval=0.1, **given)
    await eventually(lambda: len(world.peers.messages(Kind.PROPLET_ALIVE)) >= 4)
    assert not world.peers.messages(Kind.PROPLET_METRICS)


def test_system_information_can_be_kept_back() -> None:
    named = {"domain_id": "d", "channel_id": "c", "client_id": "me", "client_key": "k"}
    told = device_metadata(PropletSettings.load(**named, collect_system_info=False, instance_id="proplet-1"))
    assert (told.hostname, told.ip, told.total_memory_bytes) == (None, None, 0)
    assert (told.name, told.description) == ("proplet-1", "proplet-1")
    assert device_metadata(PropletSettings.load(**named, task_state_bytes=0)).device_state is False
    assert device_metadata(PropletSettings.load(**named, data=Path("rows.csv"))).own_data is True
    full = device_metadata(PropletSettings.load(**named))
    assert full.os
    assert full.cpu_arch


def test_metrics_are_of_the_process() -> None:
    measured = process_metrics(psutil.Process(), "me", "default")
    assert measured.cpu_metrics.user_seconds > 0
    assert measured.memory_metrics.rss_bytes > 1_000_000


def well(folder: Path) -> bool:
    """What the health check says."""
    try:
        probe(f"file:{folder / 'heartbeat'}")
    except NotWellError:
        return False
    return True


def test_the_heartbeat_file_holds_for_three_intervals(tmp_path: Path) -> None:
    HeartbeatFile(tmp_path, 10).mark()
    until = float((tmp_path / "heartbeat").read_text())
    assert until == pytest.approx(time.time() + 30, abs=5)
    assert [file.name for file in tmp_path.iterdir()] == ["heartbeat"]


def test_what_an_earlier_process_said_is_forgotten(tmp_path: Path) -> None:
    beat = HeartbeatFile(tmp_path, 10)
    beat.clear()
    beat.mark()
    assert well(tmp_path)
    beat.clear()
    assert not well(tmp_path)


def test_a_disk_that_takes_no_more_stops_no_heartbeat(tmp_path: Path) -> None:
    HeartbeatFile(tmp_path / "not there", 10).mark()
    assert not well(tmp_path / "not there")


async def test_the_heartbeat_file_follows_the_connection_to_the_broker(tmp_path: Path) -> None:
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
