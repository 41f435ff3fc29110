"""The manager: a fleet of proplets, tasks on them, and rounds as sets of tasks. No arithmetic of learning is here."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from propeller.errors import ConflictError, NotFoundError
from propeller.manager import tables
from propeller.manager.coordinator import Coordinator
from propeller.manager.dispatch import Dispatcher
from propeller.manager.failures import Failures
from propeller.manager.inbox import Inbox
from propeller.manager.proplets import Fleet, Proplet
from propeller.manager.rounds import Rounds
from propeller.manager.runs import Runs
from propeller.manager.samples import Samples
from propeller.manager.settings import Settings
from propeller.manager.task_store import TaskStore
from propeller.manager.tasks import Tasks
from propeller.manager.watch import Watch
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.mqtt.trouble import Names
from propeller.protocol.ids import check_id
from propeller.protocol.topics import Channel
from propeller.protocol.wire import format_time, now
from propeller.store.database import Database
from propeller.store.migrations import migrate


@dataclass(frozen=True)
class Manager:
    """The parts of a manager, put together."""

    fleet: Fleet
    tasks: Tasks
    runs: Runs
    samples: Samples
    rounds: Rounds
    session: Session
    coordinator: Coordinator | None

    def proplets(self, offset: int, limit: int, status: str | None) -> tuple[int, list[Proplet]]:
        """How many proplets there are, and a page of them in the order of their registration.

        ``status`` ``active`` or ``inactive`` leaves only those that live, or do not.
        """
        proplets = self.fleet.all()
        if status is not None:
            moment = self.fleet.clock()
            proplets = [one for one in proplets if one.is_alive(moment) == (status == "active")]
        return len(proplets), proplets[offset : offset + limit]

    def proplet(self, proplet_id: str) -> Proplet:
        """A proplet.

        Raises:
            NotFoundError: there is none with this id.
        """
        proplet = self.fleet.get(check_id(proplet_id))
        if proplet is None:
            raise NotFoundError(f"no proplet {proplet_id}: ids are client ids, see GET /proplets")
        return proplet

    async def forget_proplet(self, proplet_id: str) -> None:
        """Delete a proplet.

        Raises:
            PropellerError: 404; 409, tasks run on it.
        """
        proplet = self.proplet(proplet_id)
        count = (await self.tasks.store.loads()).get(proplet.id, 0)
        if count:
            raise ConflictError(f"proplet {proplet_id} runs {count} tasks: stop them first")
        await self.fleet.remove(proplet.id)

    def proplet_json(self, proplet: Proplet, loads: dict[str, int]) -> dict[str, Any]:
        """The proplet object of the HTTP API: the keys of both versions of absmach/propeller."""
        last = proplet.last_alive_at
        return {
            "id": proplet.id,
            "name": proplet.name,
            "task_count": loads.get(proplet.id, 0),
            "alive": proplet.is_alive(self.fleet.clock()),
            "alive_history": [format_time(beat) for beat in proplet.heartbeats] or None,
            **({"last_alive_at": format_time(last)} if last else {}),
            "namespace": proplet.namespace,
            "metadata": proplet.metadata or {},
        }


@contextlib.asynccontextmanager
async def open_manager(settings: Settings, *, clock: Callable[[], datetime] = now) -> AsyncIterator[Manager]:
    """A manager with its database and its MQTT session; both are closed at the end of the block.

    It does not wait for the broker: what needs it is answered 503 until it is there.

    Raises:
        StartError: the database cannot be opened.
    """
    key = settings.client_key.get_secret_value()
    credentials = (settings.client_id, key) if key and settings.auth == "on" else None
    url = settings.coordinator_url
    coordinator = Coordinator(url, credentials=credentials) if url else None
    failures = Failures(coordinator)
    database = Database(settings.database)
    try:
        await migrate(database, tables.SCHEMA)
        fleet = Fleet(database, interval_s=settings.liveliness_interval_s, clock=clock)
        await fleet.load()
        address = BrokerAddress.parse(settings.mqtt_address)
        session = Session(
            address,
            Credentials(settings.client_id, settings.client_id if key else "", key),
            tls=settings.tls_context(address),
            names=Names.of("MANAGER"),
        )
        channel = Channel(settings.domain_id, settings.channel_id)
        dispatcher = Dispatcher(
            session,
            channel,
            qos=settings.mqtt_qos,
            timeout_s=settings.mqtt_timeout_s,
            max_bytes=settings.max_message_bytes,
        )
        store = TaskStore(database)
        tasks = Tasks(store, fleet, dispatcher)
        runs = Runs(tasks, fleet, dispatcher, failures)
        samples = Samples(database, keep=settings.metrics_keep)
        rounds = Rounds(database, fleet, store, runs, dispatcher, coordinator, failures)
        inbox = Inbox(channel, fleet, runs, samples, rounds)
        watch = Watch(
            fleet,
            store,
            runs,
            rounds,
            samples,
            interval_s=settings.liveliness_interval_s,
            tasks_keep=settings.tasks_keep,
            is_connected=lambda: session.connected,
        )
        await rounds.report_failures()
        await inbox.subscribe(session)

        async def resume() -> None:
            watch.listen()
            await rounds.resume()

        async with session.running(on_connect=resume), watch.running():
            yield Manager(fleet, tasks, runs, samples, rounds, session, coordinator)
        await watch.write()
    finally:
        await failures.close()
        if coordinator is not None:
            await coordinator.aclose()
        await database.close()
