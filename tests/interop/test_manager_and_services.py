"""Our manager, coordinator and services as processes, with peers of both versions of absmach/propeller played from files."""

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.exchange import playing
from support.net import free_port
from support.service import start_service, start_services

EXCHANGES = Path(__file__).parent / "exchanges"
SEEDED = "3fe95a65-74f1-4ede-bf20-ef565f04cecb"


@dataclass
class Services:
    """What runs: the broker, addresses by name, the channel's prefix, and the manager's environment."""

    broker: int
    urls: dict[str, str]
    prefix: str
    manager: dict[str, str]

    def variables(self) -> dict[str, str]:
        """Names for one exchange."""
        fresh = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("p1", "p2", "round", "proxy")}
        return {"b": self.prefix, "seeded": SEEDED, **fresh}


@pytest.fixture(scope="module")
def services(broker_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder, domain = tmp_path_factory.mktemp("services"), f"d-{uuid.uuid4().hex[:8]}"
    names = ("manager", "coordinator", "aggregator", "model-registry", "data-store")
    ports = {name: free_port() for name in names}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    broker = f"tcp://127.0.0.1:{broker_port}"
    environments = {
        "manager": {
            "MANAGER_DOMAIN_ID": domain,
            "MANAGER_CHANNEL_ID": "c",
            "MANAGER_CLIENT_ID": f"manager-{domain}",
            "MANAGER_HTTP_PORT": str(ports["manager"]),
            "MANAGER_COMPAT": "any",
            "MANAGER_MQTT_ADDRESS": broker,
            "MANAGER_DATABASE": str(folder / "manager.db"),
            "COORDINATOR_URL": urls["coordinator"],
        },
        "coordinator": {
            "COORDINATOR_PORT": str(ports["coordinator"]),
            "COORDINATOR_STATE": str(folder / "coordinator"),
            "COORDINATOR_DOMAIN_ID": domain,
            "COORDINATOR_CHANNEL_ID": "c",
            "MQTT_BROKER": broker,
            "MQTT_CLIENT_ID": f"coordinator-{domain}",
            "AGGREGATOR_URL": urls["aggregator"],
            "MODEL_REGISTRY_URL": urls["model-registry"],
        },
        "aggregator": {"AGGREGATOR_PORT": str(ports["aggregator"])},
        "model-registry": {
            "REGISTRY_PORT": str(ports["model-registry"]),
            "MODELS_DIR": str(folder / "models"),
        },
        "data-store": {
            "DATA_STORE_PORT": str(ports["data-store"]),
            "DATA_DIR": str(folder / "datasets"),
            "PROPLET_CLIENT_ID": SEEDED,
        },
    }
    with start_services({name: (environments[name], ports[name]) for name in names}, folder):
        yield Services(broker_port, urls, f"m/{domain}/c/c", environments["manager"])


@pytest.mark.parametrize(
    "name",
    [
        "manager-with-s-proplets",
        "tasks-on-s-proplets",
        "manager-with-h-proplets",
        "rounds-over-mqtt",
        "coordinator-with-an-s-manager",
        "services-with-an-s-coordinator",
    ],
)
async def test_the_exchange_holds(services: Services, name: str) -> None:
    async with playing(services.broker, services.urls, free_port(), **services.variables()) as player:
        await player.play(EXCHANGES / f"{name}.jsonl")


async def test_a_kept_will_of_an_s_peer_is_no_news(services: Services, tmp_path: Path) -> None:
    domain, port = f"d-{uuid.uuid4().hex[:8]}", free_port()
    env = services.manager | {
        "MANAGER_DOMAIN_ID": domain,
        "MANAGER_CLIENT_ID": f"manager-{domain}",
        "MANAGER_HTTP_PORT": str(port),
        "MANAGER_DATABASE": str(tmp_path / "manager.db"),
    }
    urls, variables = {"manager": f"http://127.0.0.1:{port}"}, services.variables() | {"b": f"m/{domain}/c/c"}
    async with playing(services.broker, urls, free_port(), **variables) as player:
        with start_service("manager", env, port, tmp_path / "log") as manager:
            await player.play(EXCHANGES / "wills-of-s-peers.jsonl")
            manager.terminate()
            await asyncio.to_thread(manager.wait, 10)
        with start_service("manager", env, port, tmp_path / "log"):
            await player.play(EXCHANGES / "after-a-restart-of-the-manager.jsonl")
