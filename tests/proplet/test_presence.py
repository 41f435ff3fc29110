"""What a proplet says of itself."""

from datetime import UTC, datetime

import psutil
import pytest

from propeller.proplet.presence import describe, measure
from propeller.proplet.settings import Settings
from propeller.protocol.topics import Kind
from support.net import eventually
from support.proplet import World


async def test_it_registers_beats_and_reports(world: World) -> None:
    me = await world.join(
        liveliness_interval=0.1, metrics_interval=0.1, tags="gpu, lab", location="here", namespace="ns"
    )
    heard = world.peers
    await eventually(lambda: len(heard.of(Kind.PROPLET_ALIVE)) >= 3 and heard.of(Kind.PROPLET_METRICS))
    (create,) = heard.of(Kind.PROPLET_CREATE)
    assert (create["proplet_id"], create["namespace"]) == (me, "ns")
    metadata = create["metadata"]
    assert metadata["directed"] is True
    assert metadata["liveliness_interval"] == 0.1
    assert (metadata["tags"], metadata["location"]) == (["gpu", "lab"], "here")
    assert metadata["total_memory_bytes"] > 0
    assert heard.of(Kind.PROPLET_ALIVE)[0] == {"proplet_id": me, "status": "alive", "namespace": "ns"}
    metrics = heard.of(Kind.PROPLET_METRICS)[0]
    assert metrics["memory_metrics"]["rss_bytes"] > 1_000_000
    sent = datetime.fromisoformat(metrics["timestamp"])
    assert abs((datetime.now(UTC) - sent).total_seconds()) < 60
    order = [kind for kind, _ in heard.heard]
    assert order.index(Kind.PROPLET_CREATE) < order.index(Kind.PROPLET_ALIVE)


@pytest.mark.parametrize("given", [{"metrics_interval": 0}, {"monitoring": False, "metrics_interval": 0.05}])
async def test_monitoring_can_be_switched_off(world: World, given: dict[str, object]) -> None:
    await world.join(liveliness_interval=0.1, **given)
    await eventually(lambda: len(world.peers.of(Kind.PROPLET_ALIVE)) >= 4)
    assert not world.peers.of(Kind.PROPLET_METRICS)


def test_system_information_can_be_kept_back() -> None:
    named = {"domain_id": "d", "channel_id": "c", "client_id": "me", "client_key": "k"}
    told = describe(Settings.load(**named, collect_system_info=False, instance_id="proplet-1"))
    assert (told.hostname, told.ip, told.total_memory_bytes) == (None, None, 0)
    assert told.description == "proplet-1"
    full = describe(Settings.load(**named))
    assert full.os
    assert full.cpu_arch


def test_metrics_are_of_the_process() -> None:
    measured = measure(psutil.Process(), "me", "default")
    assert measured.cpu_metrics.user_seconds > 0
    assert measured.memory_metrics.rss_bytes > 1_000_000
