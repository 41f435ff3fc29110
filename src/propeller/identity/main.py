"""The identity service as a process: its API on four ports, and its connection to the broker."""

import asyncio
import contextlib

from propeller.identity.api import create_api
from propeller.identity.service import open_identity
from propeller.identity.settings import IdentitySettings
from propeller.store.ownership import owned
from propeller.web.server import Bind, serve


async def main(settings: IdentitySettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, once it is the owner of its database.

    Raises:
        StartError: a port cannot be had, the database cannot be opened, or there is no admin.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(owned(settings.database, "identity", stop))
        if database is None:
            return
        identity = await stack.enter_async_context(open_identity(settings, database))
        ports = {
            "users": settings.users_port,
            "domains": settings.domains_port,
            "channels": settings.channels_port,
            "clients": settings.clients_port,
        }
        app = create_api(identity, database.health)
        binds = [
            Bind(
                f"identity ({name})",
                settings.host,
                port,
                f"IDENTITY_{name.upper()}_PORT",
                settings.tls,
                trusted_proxies=settings.trusted_proxies,
            )
            for name, port in ports.items()
        ]
        await serve([(bind, app) for bind in binds], stop)
