"""Programs from a registry, and programs that aggregate, for a simulation: a service's program host in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog
from pydantic import Field, SecretStr

from propeller.oci.reference import DOCKER_HUB, DefaultRegistry
from propeller.process.settings import ServiceSettings
from propeller.program_host.programs import HostSettings, PinnedProgram, ProgramHost
from propeller.program_host.settings import RegistryUrl, make_credential
from propeller.simulation.programs import Program
from propeller.wasm.program_run import MIB, Limits
from propeller.wasm.runtimes import runtimes_folder, user_cache

T = TypeVar("T")

_CACHE_BYTES = 1024 * MIB
_LIMITS = Limits(tensor_bytes=2048 * MIB, out_bytes=2048 * MIB)
"""Of a program that aggregates, as the aggregator has them by default."""


class RegistrySettings(ServiceSettings):
    """Where programs are whose reference names no registry, and the login for that registry: the variables of the fleet's proxy."""

    registry_url: RegistryUrl | None = Field(None, alias="PROXY_REGISTRY_URL")
    registry_username: str | None = Field(None, alias="PROXY_REGISTRY_USERNAME")
    registry_password: SecretStr | None = Field(None, alias="PROXY_REGISTRY_PASSWORD")
    registry_token: SecretStr | None = Field(None, alias="PROXY_REGISTRY_TOKEN")


class _HostSettings(HostSettings):
    @property
    def login_help(self) -> str:
        return (
            "set PROXY_REGISTRY_URL={registry}, PROXY_REGISTRY_USERNAME and PROXY_REGISTRY_PASSWORD, or log in with "
            "`docker login {host}`"
        )


class LocalProgramHost:
    """A program host that blocks. Use with ``with``; nothing is opened before it is needed."""

    def __init__(self, folder: Path) -> None:
        """``folder`` takes what is given to programs; programs are kept beside those that clients run."""
        self._folder = folder
        self._host: ProgramHost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._loop is None or self._thread is None:
            return
        if self._host is not None:
            asyncio.run_coroutine_threadsafe(self._host.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fetch(self, reference: str) -> Program:
        """A program from its registry, or from the cache if what the reference names is there.

        Raises:
            OciError: it cannot be had; with the cause and the remedy.
            ProgramError: it cannot be compiled, or is over a limit.
        """

        async def fetch(host: ProgramHost) -> Program:
            pinned = await host.prepare(reference)
            content, runtime = await host.contents(pinned)
            return Program(content, pinned.digest, pinned.reference, runtime)

        return self.call(fetch)

    def prepare(self, reference: str, content: bytes) -> PinnedProgram:
        """Have a program ready to run; ``reference`` is what it is called.

        Raises:
            ProgramError: it cannot be compiled, or is over a limit.
        """
        return self.call(lambda host: host.keep(reference, content))

    def call(self, use: Callable[[ProgramHost], Coroutine[Any, Any, T]]) -> T:
        """Use the host in its thread."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._use(use), self._loop).result()

    async def _use(self, use: Callable[[ProgramHost], Coroutine[Any, Any, T]]) -> T:
        if self._host is None:
            self._host = ProgramHost(self._settings(), structlog.wrap_logger(structlog.ReturnLogger()))
        return await use(self._host)

    def _settings(self) -> HostSettings:
        given = RegistrySettings()
        registry = DOCKER_HUB if given.registry_url is None else DefaultRegistry.parse(given.registry_url)
        credential = make_credential(given.registry_username, given.registry_password, given.registry_token)
        programs = user_cache() / "sandbox" / "programs"
        return _HostSettings(
            "simulation",
            self._folder,
            registry,
            credential,
            _LIMITS,
            _CACHE_BYTES,
            programs,
            runtimes=runtimes_folder(),
            keeps_native=True,
        )
