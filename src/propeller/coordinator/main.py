"""The coordinator's process: opens what it uses, serves, and closes it again."""

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from propeller.coordinator.aggregation import Aggregation
from propeller.coordinator.aggregator_client import AggregatorClient
from propeller.coordinator.api import create_api
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.central_evaluation import NO_NATIVE, CentralEvaluations, DataStoreClient
from propeller.coordinator.experiment_store import ExperimentStore
from propeller.coordinator.experiments import Experiments
from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.large_updates import LargeUpdates
from propeller.coordinator.mqtt import RoundAnnouncer, RoundPublisher, UpdateReceiver
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.service import Coordinator
from propeller.coordinator.settings import CoordinatorSettings
from propeller.coordinator.store import RoundStore
from propeller.coordinator.telemetry import CoordinatorMetrics, RoundTelemetry
from propeller.coordinator.verification import Verification
from propeller.mqtt.session import Session
from propeller.oci.signers import Signers
from propeller.process.background import BackgroundTasks
from propeller.process.http import ServiceClient
from propeller.program_host.settings import make_allowed, make_credential
from propeller.store.blobs import BlobStore
from propeller.store.ownership import owned
from propeller.web.auth import admission
from propeller.web.server import bind_api, serve

if TYPE_CHECKING:
    from propeller.program_host.native_programs import NativePrograms
    from propeller.program_host.programs import ProgramHost

REGISTRY_TIMEOUT_S, AGGREGATOR_TIMEOUT_S = 60.0, 600.0
"""The longest silence of a service, in seconds: aggregating many large updates takes its time."""


async def main(settings: CoordinatorSettings, stop: asyncio.Event) -> None:
    """Coordinate rounds until ``stop`` is set, once it is the owner of its database.

    Raises:
        StartError: a port, the database, the blobs, a file of signers or the interpreter of native programs cannot be had.
    """
    bind = bind_api("coordinator", settings, settings.host, settings.port, "COORDINATOR_PORT")
    signers = Signers.read(settings.signers, "coordinator")
    native = await asyncio.to_thread(_find_native, settings, signers)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(owned(settings.database_place, "coordinator", stop))
        if database is None:
            return
        store = RoundStore(database)
        await store.create()
        registry = ModelRegistryClient(
            await stack.enter_async_context(
                ServiceClient(
                    "model registry",
                    settings.model_registry_url,
                    credentials=settings.credentials,
                    timeout=REGISTRY_TIMEOUT_S,
                )
            )
        )
        aggregator = AggregatorClient(
            await stack.enter_async_context(
                ServiceClient(
                    "aggregator",
                    settings.aggregator_url,
                    credentials=settings.credentials,
                    timeout=AGGREGATOR_TIMEOUT_S,
                )
            ),
            folder=settings.state,
        )
        metrics = CoordinatorMetrics()
        session = _create_session(settings)
        announcer = RoundAnnouncer(session, store, settings.channel) if session else None
        updates = KeptUpdates(BlobStore(settings.blobs_place), database)
        bases = BaseModels(registry, settings.state / "large")
        aggregation = Aggregation(updates, registry, aggregator, bases)
        publisher = RoundPublisher(session, settings.channel) if session else None
        service = Coordinator(
            store,
            registry,
            updates,
            aggregation,
            RoundTelemetry(metrics),
            bases,
            announce=announcer.announce if announcer else None,
            stop_tasks=publisher.stop if publisher else None,
            keep_updates=settings.keep_updates,
            keep_failed_s=settings.keep_failed_s,
        )
        central = CentralEvaluations(
            service,
            registry,
            await _open_data_store(settings, stack),
            lambda: _open_programs(settings, signers, native),
            native,
        )
        experiments = Experiments(
            ExperimentStore(database),
            service,
            registry,
            aggregator,
            publisher=publisher,
            central=central,
            max_running=settings.max_experiments,
            keep_events_s=settings.keep_events_s,
        )
        if announcer is not None:
            await announcer.load()
        stack.push_async_callback(service.close)
        if publisher is not None:
            stack.push_async_callback(publisher.close)
        stack.push_async_callback(experiments.close)
        await service.start()
        await experiments.start()
        background = BackgroundTasks("coordinator")
        if session is not None and announcer is not None:
            # Subscribed first, as the broker sends what waited at once. The connection is not waited for: HTTP is
            # served while the broker is away.
            receiver = UpdateReceiver(service, max_bytes=settings.max_bytes)
            await receiver.subscribe(session, settings.channel)
            await stack.enter_async_context(session.running())
            background.spawn(announcer.run())
        stack.push_async_callback(background.close)
        background.spawn(_answer_waiters(service, experiments, stop))
        app = create_api(
            service,
            experiments,
            metrics,
            verification=Verification(registry, updates, aggregation, service.find_round),
            admission=admission("coordinator", settings, settings.domain_id),
            large=LargeUpdates(settings.state / "large"),
            max_body=settings.max_bytes,
            max_update=settings.max_update_bytes,
            database_health=database.health,
        )
        await serve([(bind, app)], stop)


async def _open_data_store(
    settings: CoordinatorSettings, stack: contextlib.AsyncExitStack
) -> DataStoreClient | None:
    if settings.data_store_url is None:
        return None
    client = ServiceClient("data store", settings.data_store_url, credentials=settings.credentials)
    return DataStoreClient(await stack.enter_async_context(client))


def _find_native(settings: CoordinatorSettings, signers: Signers) -> "NativePrograms | None":
    if settings.native_python is None:
        return None
    from propeller.oci.reference import DefaultRegistry
    from propeller.program_host.native_programs import NativePrograms  # for the few that run native programs

    return NativePrograms.find(
        signers,
        settings.native_python,
        settings.native_repositories,
        DefaultRegistry.parse(settings.registry_url),
        settings.own_folders,
    )


def _open_programs(
    settings: CoordinatorSettings, signers: Signers, native: "NativePrograms | None"
) -> "ProgramHost":
    # Here, as a coordinator without central evaluations has no use for a sandbox and a registry's client.
    from propeller.oci.reference import DefaultRegistry
    from propeller.program_host.programs import HostSettings, ProgramHost
    from propeller.wasm.owners_limits import NATIVE_MEMORY_BYTES
    from propeller.wasm.program_run import Limits

    limits = Limits(
        wall_time_s=settings.program_wall_time,
        memory_bytes=settings.program_memory,
        tensor_bytes=settings.program_tensor_bytes,
    )
    if native is not None and "program_memory" not in settings.model_fields_set:
        limits = replace(limits, memory_bytes=NATIVE_MEMORY_BYTES)
    credential = make_credential(
        settings.registry_username, settings.registry_password, settings.registry_token
    )
    registry = DefaultRegistry.parse(settings.registry_url)
    return ProgramHost(
        HostSettings(
            "coordinator",
            settings.cache_folder,
            registry,
            credential,
            limits,
            settings.cache_bytes,
            settings.program_cache,
            make_allowed("coordinator", settings.registry_url, settings.allowed_registries),
            signers,
            settings.runtimes,
            native=native,
            native_help=NO_NATIVE,
        )
    )


def _create_session(settings: CoordinatorSettings) -> Session | None:
    address = settings.broker_address
    if address is None:
        return None
    return Session(
        address, settings.mqtt_credentials, tls=settings.tls_context(address), names=settings.mqtt_names
    )


async def _answer_waiters(service: Coordinator, experiments: Experiments, stop: asyncio.Event) -> None:
    """Answer those who wait for rounds or follow experiments when the process is to end: the server waits for open requests."""
    await stop.wait()
    service.answer_waiters()
    experiments.answer_waiters()
