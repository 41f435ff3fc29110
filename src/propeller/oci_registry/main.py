"""The embedded registry's process."""

import asyncio

from propeller.oci.layout import Layout
from propeller.oci_registry.api import create_api
from propeller.oci_registry.settings import OciRegistrySettings
from propeller.process.run import StartError
from propeller.web.auth import verifier
from propeller.web.server import Bind, check_exposure, serve


async def main(settings: OciRegistrySettings, stop: asyncio.Event) -> None:
    """Serve the registry until ``stop`` is set.

    Raises:
        StartError: the folder or the port cannot be used, or the registry would be open to a network.
    """
    login = settings.login
    authenticated = login is not None or settings.auth == "on"
    check_exposure("oci-registry", settings.host, authenticated=authenticated, insecure=settings.insecure)
    try:
        layout = await asyncio.to_thread(Layout, settings.folder)
    except OSError as error:
        raise StartError(
            f"oci-registry: cannot keep artifacts in {settings.folder}: {error.strerror}; set OCI_REGISTRY_FOLDER"
        ) from None
    app = create_api(layout, login=login, verify=verifier(settings), max_blob=settings.max_blob)
    await serve([(Bind("oci-registry", settings.host, settings.port, "OCI_REGISTRY_PORT"), app)], stop)
