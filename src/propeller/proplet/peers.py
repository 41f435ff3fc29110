"""The services a proplet talks to over HTTP: those of its settings, or those that a task names in its environment."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Self

from propeller.process.http import ServiceClient

COORDINATOR = "COORDINATOR_URL"
MODEL_REGISTRY = "MODEL_REGISTRY_URL"
DATA_STORE = "DATA_STORE_URL"

_NAMES = {COORDINATOR: "coordinator", MODEL_REGISTRY: "model registry", DATA_STORE: "Local Data Store"}


class Peers:
    """Connections to services, by the variable that holds the service's address. Use with ``async with``."""

    def __init__(self, urls: Mapping[str, str | None], credentials: tuple[str, str] | None = None) -> None:
        """``credentials`` (id and key) go to the services of ``urls`` only, never to one that a task names."""
        self.urls = {variable: url.rstrip("/") for variable, url in urls.items() if url}
        self._clients = {
            variable: ServiceClient(_NAMES[variable], url, credentials=credentials)
            for variable, url in self.urls.items()
        }

    def url(self, variable: str, env: Mapping[str, str]) -> str | None:
        """The service's address: the task's own, else the proplet's."""
        return env.get(variable, "").rstrip("/") or self.urls.get(variable)

    @contextlib.asynccontextmanager
    async def at(self, variable: str, env: Mapping[str, str]) -> AsyncIterator[ServiceClient | None]:
        """A client for the service, ``None`` if nobody says where it is."""
        url = self.url(variable, env)
        if url is None or url == self.urls.get(variable):
            yield self._clients.get(variable)
            return
        async with ServiceClient(_NAMES[variable], url) as client:
            yield client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for client in self._clients.values():
            await client.aclose()
