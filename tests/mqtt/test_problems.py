"""What every client of the broker says when it is refused: the cause, the settings to correct, and not for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from structlog.testing import capture_logs

from propeller.identity.service import Identity
from propeller.mqtt import problems
from propeller.mqtt.address import BrokerAddress, Credentials
from propeller.stack.services import find_service
from support.identity import Site
from support.net import eventually, free_port
from support.provisioned import Provisioned

NAMES = {"manager": "manager", "coordinator": "fl-coordinator", "proxy": "proxy", "proplet": "proplet-1"}
"""Services, and the client that each is."""


@dataclass
class Place:
    site: Site
    identity: Identity
    made: Provisioned
    folder: Path

    def fields(self, service: str) -> dict[str, Any]:
        """A service's settings, right ones."""
        client, broker = self.made.clients[NAMES[service]], f"tcp://127.0.0.1:{self.site.broker.port}"
        fields: dict[str, Any] = {
            "domain_id": self.made.domain_id,
            "channel_id": self.made.channel_id,
            "client_id": client.id,
            "client_key": client.key,
        }
        own: dict[str, dict[str, Any]] = {
            "manager": {"database": str(self.folder / "manager.db"), "http_port": free_port()},
            "coordinator": {
                "state": self.folder / "coordinator", "port": free_port(), "broker": broker,
                "model_registry_url": "http://127.0.0.1:1", "aggregator_url": "http://127.0.0.1:1",
            },
            "proxy": {"cache": self.folder / "proxy", "http_port": free_port(), "PROXY_REGISTRY_URL": "ghcr.io"},
            "proplet": {"state": self.folder / "proplet"},
        }  # fmt: skip
        address = {} if service == "coordinator" else {"mqtt_address": broker}
        return {**fields, **address, **own[service]}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    site = Site.at(tmp_path)
    async with site.running() as (identity, made):
        yield Place(site, identity, made, tmp_path)


@contextlib.asynccontextmanager
async def running(service: str, fields: dict[str, Any]) -> AsyncIterator[list[Any]]:
    """A service through its ``main``; gives what is logged."""
    spec = find_service(service)
    stop = asyncio.Event()
    with capture_logs() as logs:
        task = asyncio.create_task(spec.load_main()(spec.load_settings_class().load(**fields), stop))
        try:
            yield logs
        finally:
            stop.set()
            await task


async def line(logs: list[Any], that: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    found = await eventually(lambda: next((one for one in logs if that(one)), None), 8)
    assert found is not None
    return dict(found)


def refused(one: dict[str, Any]) -> bool:
    return bool(one["event"].startswith("the MQTT broker refuses this client"))


@pytest.mark.parametrize("service", NAMES)
async def test_a_refused_service_says_what_to_correct(place: Place, service: str) -> None:
    fields, prefix = place.fields(service), service.upper()
    async with running(service, {**fields, "client_key": "wrong"}) as logs:
        said = await line(logs, refused)
    assert fields["client_id"] in said["reason"]
    assert f"correct {prefix}_CLIENT_ID and {prefix}_CLIENT_KEY" in said["remedy"]
    assert "wrong" not in {value for value in said.values() if isinstance(value, str)}

    for wrong in ("domain_id", "channel_id"):
        async with running(service, {**fields, wrong: "another"}) as logs:
            said = await line(logs, lambda one: one["event"] == "MQTT subscription refused")
        assert f"check {prefix}_DOMAIN_ID and {prefix}_CHANNEL_ID" in said["reason"]
        assert all("another" in topic for topic in said["topics"])
        assert len([one for one in logs if one["event"] == "MQTT subscription refused"]) == 1

    async with running(service, fields) as logs:
        await line(logs, lambda one: one["event"] == "connected to MQTT broker")
        await place.identity.clients.rotate_key(place.made.domain_id, fields["client_id"])
        await line(logs, lambda one: one["event"] == "MQTT connection lost, connecting again")
        await line(logs, refused)


async def test_the_same_trouble_is_told_once_a_minute(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**place.fields("proxy"), "client_key": "wrong"}
    tries = "MQTT connection refused"  # each, as identity sees them
    async with running("proxy", wrong) as logs:
        await eventually(lambda: sum(one["event"] == tries for one in logs) >= 4)
        assert sum(map(refused, logs)) == 1
    monkeypatch.setattr(problems, "REPEAT_S", 0.0)
    async with running("proxy", wrong) as logs:
        await eventually(lambda: sum(map(refused, logs)) >= 3)


async def test_without_a_key_it_says_that_one_is_wanted(place: Place) -> None:
    fields = place.fields("proxy")
    del fields["client_key"]
    async with running("proxy", fields) as logs:
        said = await line(logs, refused)
    assert said["reason"] == "it wants a client's id and key, and one of them is not set"
    assert said["remedy"] == "set PROXY_CLIENT_ID and PROXY_CLIENT_KEY: propeller provision makes them"


def test_connections_that_are_lost_again_and_again_have_a_remedy() -> None:
    """Two clients with one identifier end each other's; a broker that restarts ends one."""
    problem_log = problems.ProblemLog(
        BrokerAddress("127.0.0.1", 1), Credentials("m", "p-1"), problems.SettingNames.of_service("PROPLET")
    )
    with capture_logs() as logs:
        for lasted_s in (1.0, 1.0, 100.0, 1.0, 1.0, 1.0):
            problem_log.connection_lost(aiomqtt.MqttError("[code:128] Unspecified error"), lasted_s)
    assert ["remedy" in line for line in logs] == [False, False, False, False, False, True]
    assert "another process may be connected as p-1" in logs[-1]["remedy"]
    assert "PROPLET_CLIENT_ID and PROPLET_CLIENT_KEY of its own" in logs[-1]["remedy"]
