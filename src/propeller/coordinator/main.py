"""The coordinator's process: opens what it uses, serves, and closes it again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from propeller.coordinator.aggregation import Aggregation
from propeller.coordinator.announcer import Announcer
from propeller.coordinator.api import create_api
from propeller.coordinator.intake import Intake
from propeller.coordinator.journal import Journal
from propeller.coordinator.metrics import CoordinatorMetrics
from propeller.coordinator.peers import Aggregator, ModelRegistry
from propeller.coordinator.service import Coordinator
from propeller.coordinator.settings import Settings
from propeller.coordinator.store import RoundStore
from propeller.mqtt.session import Session
from propeller.process.http import ServiceClient
from propeller.store.blobs import Blobs
from propeller.store.database import Database
from propeller.web.auth import verifier
from propeller.web.server import Bind, check_exposure, serve

REGISTRY_TIMEOUT_S, AGGREGATOR_TIMEOUT_S = 60.0, 600.0
"""The longest silence of a peer, in seconds: aggregating many large updates takes its time."""


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Coordinate rounds until ``stop`` is set.

    Raises:
        StartError: a port, the database or the blobs cannot be had.
    """
    check_exposure(
        "coordinator", settings.host, authenticated=settings.auth == "on", insecure=settings.insecure
    )
    async with contextlib.AsyncExitStack() as opened:
        database = Database(settings.database_place)
        opened.push_async_callback(database.close)
        store = RoundStore(database)
        await store.create()
        credentials = settings.credentials
        registry = await opened.enter_async_context(
            ServiceClient(
                "model registry",
                settings.model_registry_url,
                credentials=credentials,
                timeout=REGISTRY_TIMEOUT_S,
            )
        )
        aggregator = await opened.enter_async_context(
            ServiceClient(
                "aggregator", settings.aggregator_url, credentials=credentials, timeout=AGGREGATOR_TIMEOUT_S
            )
        )
        models = ModelRegistry(registry)
        aggregation = Aggregation(
            Blobs(settings.blobs_place),
            models,
            Aggregator(aggregator),
            keep_updates=settings.keep_updates,
            keep_failed_s=settings.keep_failed_s,
        )
        metrics = CoordinatorMetrics()
        session = _session(settings)
        announcer = Announcer(session, store, settings.channel) if session else None
        service = Coordinator(
            store, models, aggregation, Journal(metrics), announce=announcer.add if announcer else None
        )
        if announcer is not None:
            await announcer.load()
        opened.push_async_callback(service.close)
        await service.start()
        if session is not None and announcer is not None:
            # Subscribed first, as the broker sends what waited at once. The connection is not waited for: HTTP is
            # served while the broker is away.
            await Intake(service, max_bytes=settings.max_bytes).subscribe(session, settings.channel)
            await opened.enter_async_context(session.running())
            await opened.enter_async_context(_beside(announcer.run()))
        app = create_api(service, metrics, verify=verifier(settings), max_body=settings.max_bytes)
        async with _beside(_release(service, stop)):
            await serve([(Bind("coordinator", settings.host, settings.port, "COORDINATOR_PORT"), app)], stop)


def _session(settings: Settings) -> Session | None:
    address = settings.broker_address
    if address is None:
        return None
    return Session(
        address, settings.mqtt_credentials, tls=settings.tls_context(address), names=settings.mqtt_names
    )


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` for the length of a block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _release(service: Coordinator, stop: asyncio.Event) -> None:
    """Answer those who wait for rounds when the process is to end: the server waits for open requests."""
    await stop.wait()
    service.release()
