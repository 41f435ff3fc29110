"""The data store's process."""

import asyncio

from propeller.data_store.api import create_api
from propeller.data_store.service import DataStore
from propeller.data_store.settings import DataStoreSettings
from propeller.process.run import StartError
from propeller.web.auth import verifier
from propeller.web.server import Bind, check_exposure, serve


async def main(settings: DataStoreSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port or the folder cannot be had, or an id to seed is not one.
    """
    check_exposure(
        "data-store", settings.host, authenticated=settings.auth == "on", insecure=settings.insecure
    )
    try:
        store = DataStore(settings.folder)
        await store.seed(settings.ids_to_seed())
    except OSError as error:
        raise StartError(f"DATA_DIR {settings.folder} cannot be used: {error.strerror}") from None
    app = create_api(store, verify=verifier(settings), max_body=settings.max_bytes)
    await serve([(Bind("data-store", settings.host, settings.port, "DATA_STORE_PORT"), app)], stop)
