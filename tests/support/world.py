"""A real broker with identity, a real manager, and clients that each have a key of their own, by name."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx

from propeller.manager.settings import ManagerSettings
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.broker import Broker
from propeller.mqtt.session import Credentials, Session, Will
from propeller.protocol.topics import Channel, Kind
from propeller.stack.provisioning import IdentityApi, find_or_make_channel, find_or_make_domain
from support.identity import PASSWORD, Site
from support.identity import served as served_identity
from support.manager import ChannelClient, RunningManager, is_connected, served, settings_for
from support.net import eventually

NAMES = {
    "manager": "manager",
    "coordinator": "fl-coordinator",
    "victim": "proplet-v",
    "attacker": "proplet-a",
    "compat-1": "proplet-c1",
    "compat-2": "proplet-c2",
}
"""What identity calls the clients."""


@dataclass
class World:
    """A broker, an identity service and a manager; clients by name: ``victim``, ``attacker``, two that are ``compat``."""

    site: Site
    api: IdentityApi
    channel: Channel
    clients: dict[str, dict[str, str]]
    manager: RunningManager
    stack: contextlib.AsyncExitStack
    services: dict[str, contextlib.AsyncExitStack]

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.site.identity.users_port}"

    def id(self, name: str) -> str:
        return self.clients[name]["id"]

    async def join(self, name: str, *, port: int | None = None, will: Will | None = None) -> ChannelClient:
        """Connect as a client."""
        known = self.clients[name]
        client = ChannelClient(self.site.broker.port, self.channel)
        client.session = Session(
            BrokerAddress("127.0.0.1", port or self.site.broker.port),
            Credentials(f"{known['id']}-{uuid.uuid4().hex[:6]}", known["id"], known["key"]),
            clean=True,
            will=will,
        )
        await self.stack.enter_async_context(client.session.running())
        assert await client.session.wait_connected(10)
        return client

    async def join_as_victim(self) -> ChannelClient:
        """Connect as the victim, which registers and lives, and listens to its starts."""
        victim = await self.join("victim")
        await victim.session.subscribe(self.channel.start(self.id("victim")), victim.receive)
        self.manager.mqtt = victim
        await self.manager.add_proplets(self.id("victim"), directed=True)
        return victim

    async def told(self, client: ChannelClient) -> None:
        """Wait until the manager has handled what a compat client said before on each topic."""
        mine = self.id("compat-2")
        await client.publish(Kind.PROPLET_CREATE, {"proplet_id": mine})
        await eventually(lambda: self.manager.is_known(mine))
        await client.publish(Kind.PROPLET_ALIVE, {"proplet_id": mine})
        await eventually(lambda: self.manager.is_alive(mine))

    async def ids(self) -> set[str]:
        return {one["id"] for one in (await self.manager.http.get("/proplets?limit=1000")).json()["proplets"]}

    async def change(self, method: str, path: str, body: dict[str, object]) -> httpx.Response:
        """A request of identity's admin about the domain."""
        async with httpx.AsyncClient(
            base_url=self.api_url, headers=self.api.headers, trust_env=False
        ) as http:
            return await http.request(method, f"/{self.channel.domain_id}{path}", json=body)

    async def start_identity(self) -> None:
        """Start identity again, after ``stop("identity")``, and wait until it answers the broker."""
        await _start_identity(self.site, self.services)

    async def start_manager(self) -> None:
        """Start the manager again, after ``stop("manager")``."""
        self.manager.http = await _start_manager(self.manager.settings, self.services)

    async def stop(self, service: str) -> None:
        await self.services.pop(service).aclose()


@contextlib.asynccontextmanager
async def open_world(
    folder: Path, *, compat: Iterable[str] = ("compat-1", "compat-2"), coordinator_url: str = ""
) -> AsyncIterator[World]:
    """A world in a folder; call ``hash_cheaply`` before."""
    site = Site.at(folder)
    url = f"http://127.0.0.1:{site.identity.users_port}"
    services: dict[str, contextlib.AsyncExitStack] = {}
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Broker(site.broker))
        stack.push_async_callback(_stop_all, services)
        await _start_identity(site, services)
        api = IdentityApi(url, url, url, url, timeout=5)
        stack.push_async_callback(api.aclose)
        await api.login("admin", PASSWORD)
        domain = (await find_or_make_domain(api))["id"]
        channel = Channel(domain, (await find_or_make_channel(api, domain))["id"])
        clients = {name: await api.make_client(domain, called) for name, called in NAMES.items()}
        await api.connect(domain, channel.channel_id, [one["id"] for one in clients.values()])
        for name in compat:
            await api.set_compat(domain, clients[name]["id"])
        settings = settings_for(
            site.broker.port,
            folder,
            domain_id=domain,
            channel_id=channel.channel_id,
            client_id=clients["manager"]["id"],
            client_key=clients["manager"]["key"],
            identity_url=url,
            coordinator_url=coordinator_url,
            compat="identity",
        )
        nobody = ChannelClient(site.broker.port, channel)
        manager = RunningManager(settings, await _start_manager(settings, services), nobody)
        await eventually(lambda: is_connected(manager.http))
        yield World(site, api, channel, clients, manager, stack, services)


async def _start_identity(site: Site, services: dict[str, contextlib.AsyncExitStack]) -> None:
    own = services["identity"] = contextlib.AsyncExitStack()
    http = await own.enter_async_context(served_identity(site.identity))

    async def connected() -> bool:
        return bool((await http.get("/health")).json()["broker"] == "connected")

    await eventually(connected)


async def _start_manager(
    settings: ManagerSettings, services: dict[str, contextlib.AsyncExitStack]
) -> httpx.AsyncClient:
    own = services["manager"] = contextlib.AsyncExitStack()
    return await own.enter_async_context(served(settings))


async def _stop_all(services: dict[str, contextlib.AsyncExitStack]) -> None:
    for name in sorted(services, reverse=True):  # the manager before identity
        await services.pop(name).aclose()
