"""The manager as a process."""

import asyncio
import contextlib
import uuid

from propeller.manager.api import create_api
from propeller.manager.service import open_manager
from propeller.manager.settings import ManagerSettings
from propeller.process.logs import get_logger
from propeller.process.tls import pair
from propeller.store.ownership import owned
from propeller.web.auth import admission
from propeller.web.server import bind_api, serve

log = get_logger("manager")


async def main(settings: ManagerSettings, stop: asyncio.Event) -> None:
    """Run the manager until ``stop`` is set, once it is the owner of its database; HTTP answers also while the broker is away.

    Raises:
        StartError: it cannot start; the text says what to do.
    """
    host = "127.0.0.1" if settings.http_host == "localhost" else settings.http_host
    tls = pair(settings.http_cert, settings.http_key, "MANAGER_HTTP_SERVER_CERT", "MANAGER_HTTP_SERVER_KEY")
    bind = bind_api("manager", settings, host, settings.http_port, "MANAGER_HTTP_PORT", tls=tls)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(owned(settings.database, "manager", stop))
        if database is None:
            return
        manager = await stack.enter_async_context(open_manager(settings, database))
        log.info("manager starts", broker=settings.mqtt_address, coordinator=settings.coordinator_url or None)
        app = create_api(
            manager,
            instance_id=settings.instance_id or str(uuid.uuid4()),
            admission=admission("manager", settings, settings.domain_id),
            database_health=database.health,
        )
        await serve([(bind, app)], stop)
