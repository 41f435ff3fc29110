"""The manager: a fleet of proplets, tasks on them, and rounds as sets of tasks. No arithmetic of learning is here."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from propeller.errors import ConflictError, InvalidError, NotFoundError
from propeller.manager import tables
from propeller.manager.broadcasts import Broadcasts
from propeller.manager.client_names import ClientNames
from propeller.manager.compat_clients import AnyClient, CompatClients, KnownCompatClients
from propeller.manager.coordinator_client import CoordinatorClient, RoundReporter
from propeller.manager.dispatcher import Dispatcher
from propeller.manager.fleet import Fleet, PropletRecord
from propeller.manager.housekeeping import Housekeeping
from propeller.manager.inbox import Inbox
from propeller.manager.metrics_repository import MetricsRepository
from propeller.manager.program_pins import ProgramPins
from propeller.manager.round_repository import RoundRepository
from propeller.manager.round_selection import RoundSelector
from propeller.manager.round_starter import RoundStarter
from propeller.manager.settings import ManagerSettings
from propeller.manager.task_repository import TaskRepository
from propeller.manager.task_runner import TaskRunner
from propeller.manager.task_service import TaskService
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.problems import SettingNames
from propeller.mqtt.session import Credentials, Session
from propeller.process.clock import steady_now
from propeller.process.http import ServiceClient
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger
from propeller.protocol.ids import check_id
from propeller.protocol.topics import Channel
from propeller.protocol.wire import format_time
from propeller.store.database import Database
from propeller.store.migrations import migrate

log = get_logger("manager")


@dataclass(frozen=True)
class Manager:
    """The parts of a manager, put together."""

    fleet: Fleet
    tasks: TaskService
    runner: TaskRunner
    broadcasts: Broadcasts
    metrics: MetricsRepository
    rounds: RoundStarter
    session: Session
    coordinator: CoordinatorClient | None
    names: ClientNames | None

    async def list_proplets(
        self, offset: int, limit: int, status: str | None
    ) -> tuple[int, list[dict[str, Any]]]:
        """How many proplets there are, and a page of them in the order of their registration.

        ``status`` ``active`` or ``inactive`` leaves only those that are alive, or are not.
        """
        proplets = self.fleet.all()
        if status is not None:
            moment = self.fleet.clock()
            proplets = [one for one in proplets if one.is_alive(moment) == (status == "active")]
        loads = await self.tasks.count_active()
        page = proplets[offset : offset + limit]
        return len(proplets), [_in_a_list(self._proplet_json(proplet, loads)) for proplet in page]

    def proplet(self, proplet_id: str) -> PropletRecord:
        """A proplet.

        Raises:
            NotFoundError: there is none with this id.
        """
        proplet = self.fleet.get(check_id(proplet_id))
        if proplet is None:
            raise NotFoundError(f"no proplet {proplet_id}: ids are client ids, see GET /proplets")
        return proplet

    async def describe_proplet(self, proplet_id: str) -> dict[str, Any]:
        """The proplet object of the HTTP API.

        Raises:
            NotFoundError: there is none with this id.
        """
        return self._proplet_json(self.proplet(proplet_id), await self.tasks.count_active())

    async def rename_proplet(self, proplet_id: str, name: str) -> dict[str, Any]:
        """Call a proplet by the name that identity has for it now; where none is asked, by this one until it says another itself.

        Raises:
            NotFoundError: there is none with this id.
            ConflictError: identity has another name for it.
            InvalidError: no identity is asked, and it is one of absmach/propeller that tells nothing of itself.
            UnavailableError: identity does not answer.
        """
        proplet = self.proplet(proplet_id)
        if self.names is not None:
            await self.names.ask()
            if proplet.name != name:
                raise ConflictError(
                    f"name: by identity proplet {proplet_id} is {proplet.name!r}; give it its name there (propeller device rename, or "
                    "PATCH /{domain_id}/devices/{client_id})"
                )
        elif proplet.metadata is None:
            raise InvalidError(
                f"proplet {proplet_id} tells no name of its own, as those of absmach/propeller: it cannot be renamed"
            )
        else:
            await self.fleet.rename(proplet, name)
        return await self.describe_proplet(proplet_id)

    async def delete_proplet(self, proplet_id: str) -> None:
        """Delete a proplet.

        Raises:
            NotFoundError: there is none with this id.
            ConflictError: tasks run on it.
        """
        proplet = self.proplet(proplet_id)
        count = (await self.tasks.count_active()).get(proplet.id, 0)
        if count:
            raise ConflictError(f"proplet {proplet_id} runs {count} tasks: stop them first")
        await self.fleet.remove(proplet.id)

    def _proplet_json(self, proplet: PropletRecord, loads: dict[str, int]) -> dict[str, Any]:
        """With the keys of both versions of absmach/propeller; ``metadata`` is what it reported, with the name and tags that hold."""
        last = proplet.last_alive_at
        metadata = dict(proplet.metadata or {})
        if "name" in metadata:
            metadata["name"] = proplet.name
        if proplet.tags or "tags" in metadata:
            metadata["tags"] = list(proplet.tags)
        return {
            "id": proplet.id,
            "name": proplet.name,
            "task_count": loads.get(proplet.id, 0),
            "alive": proplet.is_alive(self.fleet.clock()),
            "alive_history": [format_time(beat) for beat in proplet.heartbeats] or None,
            **({"last_alive_at": format_time(last)} if last else {}),
            "namespace": proplet.namespace,
            "metadata": metadata,
        }


def _in_a_list(proplet: dict[str, Any]) -> dict[str, Any]:
    """A proplet object without the distributions of its native interpreter, which may be a thousand."""
    native = proplet["metadata"].get("native")
    if native is None:
        return proplet
    shown = {name: value for name, value in native.items() if name != "distributions"}
    return {**proplet, "metadata": {**proplet["metadata"], "native": shown}}


def _identity(settings: ManagerSettings) -> ServiceClient | None:
    """Whom the manager asks about the clients of its channel; ``None`` where the broker asks nobody who they are."""
    if settings.compat == "any" or settings.identity_url is None:
        return None
    credentials = (settings.client_id, settings.client_key.get_secret_value())
    return ServiceClient(
        "identity", settings.identity_url, credentials=credentials, timeout=5.0, retry_delays=(0.1, 0.4)
    )


def _compat_clients(
    settings: ManagerSettings, identity: ServiceClient | None, channel: Channel
) -> CompatClients | None:
    """Who is believed on shared topics; ``None`` if nobody is."""
    if settings.compat == "any":
        log.warning("anyone is believed on the topics that proplets share (MANAGER_COMPAT=any)")
        return AnyClient()
    return None if identity is None else KnownCompatClients(identity, channel)


@contextlib.asynccontextmanager
async def open_manager(
    settings: ManagerSettings, database: Database, *, clock: Callable[[], datetime] = steady_now
) -> AsyncIterator[Manager]:
    """A manager over a database, with its MQTT session, which is closed at the end of the block.

    It does not wait for the broker: what needs it fails with ``UnavailableError`` until it is there.

    Raises:
        StartError: the database cannot be opened.
    """
    key = settings.client_key.get_secret_value()
    credentials = (settings.client_id, key) if key and settings.auth == "on" else None
    channel = Channel(settings.domain_id, settings.channel_id)
    identity = _identity(settings)
    compat = _compat_clients(settings, identity, channel)
    url = settings.coordinator_url
    coordinator = CoordinatorClient(url, credentials=credentials) if url else None
    reporter = RoundReporter(coordinator)
    try:
        await migrate(database, tables.SCHEMA)
        fleet = Fleet(
            database,
            interval_s=settings.liveliness_interval_s,
            named_by_identity=identity is not None,
            clock=clock,
        )
        await fleet.load()
        names = None if identity is None else ClientNames(identity, channel, fleet)
        address = BrokerAddress.parse(settings.mqtt_address)
        session = Session(
            address,
            Credentials(settings.client_id, settings.client_id if key else "", key),
            tls=settings.tls_context(address),
            names=SettingNames.of_service("MANAGER"),
        )
        dispatcher = Dispatcher(
            session,
            channel,
            qos=settings.mqtt_qos,
            timeout_s=settings.mqtt_timeout_s,
            max_bytes=settings.max_message_bytes,
        )
        tasks, task_locks = TaskRepository(database), KeyedLocks()
        rounds, round_locks = RoundRepository(database), KeyedLocks()
        metrics = MetricsRepository(database, keep=settings.metrics_keep)
        runner = TaskRunner(tasks, task_locks, fleet, dispatcher, reporter)
        starter = RoundStarter(
            database, rounds, tasks, round_locks, fleet, runner, dispatcher, coordinator, reporter
        )
        pins = ProgramPins(session, channel, settings.client_id)
        selector = RoundSelector(rounds, tasks, round_locks, fleet, starter, runner, pins, coordinator)
        housekeeping = Housekeeping(
            fleet,
            tasks,
            rounds,
            round_locks,
            runner,
            metrics,
            coordinator,
            reporter,
            interval_s=settings.liveliness_interval_s,
            tasks_keep=settings.tasks_keep,
            is_connected=lambda: session.connected,
        )
        await housekeeping.report_failures()
        await pins.open()
        await Inbox(channel, fleet, runner, metrics, starter, selector, compat, names).subscribe(session)
        service = TaskService(tasks, task_locks, fleet, max_program_bytes=dispatcher.max_program_bytes)
        async with (
            names.running() if names is not None else contextlib.nullcontext(),
            session.running(on_connect=housekeeping.on_connect),
            housekeeping.running(),
            selector.running(),
        ):
            broadcasts = Broadcasts(tasks, task_locks, fleet, dispatcher, runner)
            yield Manager(fleet, service, runner, broadcasts, metrics, starter, session, coordinator, names)
        await housekeeping.write()
    finally:
        await reporter.close()
        if coordinator is not None:
            await coordinator.aclose()
        if identity is not None:
            await identity.aclose()
