"""Programs in a service's own sandbox: found in an OCI registry, fetched and compiled once, and run.

Registry client and sandbox are opened by the first of them: a service without one does not pay for them.
"""

import asyncio
import io
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cachetools import LRUCache
from structlog.typing import FilteringBoundLogger

from propeller.digests import digest_of
from propeller.errors import PropellerError, UnavailableError, UnprocessableError
from propeller.native_program import is_native
from propeller.oci.allowed import AllowedRegistries
from propeller.oci.client import RegistryClient
from propeller.oci.credentials import Credential, logins_for
from propeller.oci.errors import NotSignedError
from propeller.oci.reference import DefaultRegistry, Reference
from propeller.oci.signers import Signers
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.process.single_flight import SingleFlight
from propeller.wasm.last_words import LastWords
from propeller.wasm.layers import runtime_of
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome
from propeller.wasm.sandbox import NOT_HERE, Sandbox
from propeller.wasm.task_folders import TaskFolders
from propeller.wasm.template_client import SandboxError

if TYPE_CHECKING:
    from propeller.program_host.native_programs import NativePrograms

_MAX_KNOWN = 256
_MAX_LINE_CHARACTERS = 2000
_FETCH_WAIT_S = 60.0


@dataclass(frozen=True)
class HostSettings:
    """Where programs come from and what they may use.

    Attributes:
        service: that runs them: ``aggregator``. Its settings begin with the same word in upper case.
        folder: of the sandbox and what is given to programs, and of the programs unless those are elsewhere.
        registry: where references are that name no registry.
        credential: for that registry; without one, that of ``docker login``.
        limits: of one run.
        cache_bytes: of all programs in the cache.
        programs: the folder of programs; sandboxes of one user may share it.
        allowed: the registries that programs may come from; any, if others than the user cannot name one.
        signers: of whom one must have signed a program, if there are any.
        runtimes: the folder of shared runtimes that were made on this machine, if programs are to find theirs there.
        keeps_native: whether native programs are fetched, too, for one who has them run elsewhere.
        native: whose native programs run here, and with what; ``None``: nobody's.
        native_help: what to do where a program is a native one, and none runs here.
    """

    service: str
    folder: Path
    registry: DefaultRegistry
    credential: Credential | None
    limits: Limits
    cache_bytes: int
    programs: Path | None = None
    allowed: AllowedRegistries | None = None
    signers: Signers | None = None
    runtimes: Path | None = None
    keeps_native: bool = False
    native: "NativePrograms | None" = None
    native_help: str = NOT_HERE

    @property
    def login_help(self) -> str:
        """The remedy where a registry asks for a login."""
        prefix = f"{self.service.upper()}_REGISTRY"
        return (
            f"set {prefix}_URL={{registry}}, {prefix}_USERNAME and {prefix}_PASSWORD, or log in with `docker login {{host}}`, "
            f"and restart the {self.service}"
        )


@dataclass(frozen=True)
class PinnedProgram:
    """A program: the reference that names exactly it, and the digest of its bytes."""

    reference: str
    digest: str


class ProgramHost:
    """Finds programs by reference, and runs them. Close it."""

    def __init__(self, settings: HostSettings, log: FilteringBoundLogger | None = None) -> None:
        """Open nothing yet; ``log`` is where what happens goes: the service's, if it is not given."""
        self._settings = settings
        self._log = log or get_logger(settings.service)
        self._known: LRUCache[str, PinnedProgram] = LRUCache(_MAX_KNOWN)
        self._fetches: SingleFlight[str, None] = SingleFlight()
        self._background = BackgroundTasks(settings.service)
        self._opening = asyncio.Lock()
        self._opened: tuple[RegistryClient, Sandbox] | None = None
        self._resources = AsyncExitStack()
        self.inputs = TaskFolders(settings.folder / "inputs")
        """Folders for what is given to programs: on the file system of the sandbox, which links it."""

    async def resolve(self, reference: str) -> PinnedProgram:
        """Find the program that a reference names now; it is fetched and compiled meanwhile, for the first run.

        Raises:
            OciError: it is not there, or the registry does not answer; with the cause and the remedy.
            UnprocessableError: it must be signed, and is not.
            UnavailableError: the sandbox does not start.
        """
        program = await self._find(reference)
        self._background.spawn(self._prepare_early(program))
        return program

    async def prepare(self, reference: str) -> PinnedProgram:
        """Find the program that a reference names now, and have it ready to run.

        Raises:
            OciError, UnprocessableError, UnavailableError: as ``resolve``.
            ProgramError: it cannot be compiled, or is over a limit.
        """
        program = await self._find(reference)
        await self._have(program)
        return program

    async def keep(self, reference: str, content: bytes) -> PinnedProgram:
        """Have a program ready to run whose bytes are here; ``reference`` is what it is called.

        Raises:
            UnavailableError: the sandbox does not start.
            ProgramError: it cannot be compiled, or is over a limit.
        """
        _client, sandbox = await self._open()
        digest = digest_of(content)
        await sandbox.add(digest, content, self._settings.limits)
        return PinnedProgram(reference, digest)

    async def contents(self, program: PinnedProgram) -> tuple[bytes, bytes | None]:
        """The bytes of a prepared program, and of the runtime that it needs, if it needs one.

        Raises:
            ProgramError: it is not there any more.
        """
        _client, sandbox = await self._open()
        content = await asyncio.to_thread(sandbox.read, program.digest)
        runtime = runtime_of(content)
        return content, None if runtime is None else await asyncio.to_thread(sandbox.read, runtime)

    async def run(self, run: ProgramRun, limits: Mapping[str, float] | None = None) -> RunOutcome:
        """Run a prepared program within the service's limits, and lower ones if asked; what it prints goes to the log.

        Raises:
            UnprocessableError: it failed; the text has what its standard error says of it.
            UnavailableError: the sandbox does not start.
        """
        _client, sandbox = await self._open()
        said = LastWords(_MAX_LINE_CHARACTERS)
        lines = self._log.bind(round_id=run.env.get("ROUND_ID"))

        def keep(line: str) -> None:
            lines.info(said.add(line))

        outcome = await sandbox.run(replace(run, limits=self._settings.limits.lowered(limits)), keep)
        if outcome.error is not None:
            raise UnprocessableError(f"{outcome.error}: {said.reason}" if said.reason else outcome.error)
        return outcome

    async def close(self) -> None:
        """End what runs, and close the sandbox and the connections."""
        await self._background.close()
        await self._fetches.close()
        await self._resources.aclose()
        self.inputs.close()

    async def _open(self) -> tuple[RegistryClient, Sandbox]:
        async with self._opening:
            if self._opened is None:
                settings = self._settings
                try:
                    await asyncio.to_thread(self.inputs.open)
                    sandbox = await self._resources.enter_async_context(
                        Sandbox(
                            settings.folder / "sandbox",
                            cache=settings.programs,
                            cache_bytes=settings.cache_bytes,
                            runtimes=settings.runtimes,
                            native=None if settings.native is None else settings.native.interpreter,
                        )
                    )
                except (SandboxError, ProgramError) as error:
                    raise UnavailableError(
                        f"the {settings.service}'s sandbox does not start: {error}"
                    ) from error
                except OSError as error:
                    raise UnavailableError(
                        f"the folder {settings.folder} for programs cannot be used: {error.strerror}; "
                        f"set {settings.service.upper()}_CACHE"
                    ) from error
                client = await self._resources.enter_async_context(
                    RegistryClient(
                        logins_for(settings.registry.registry, settings.credential),
                        login_help=settings.login_help,
                        max_bytes=settings.limits.module_bytes,
                        allowed=settings.allowed,
                    )
                )
                self._opened = client, sandbox
            return self._opened

    async def _find(self, reference: str) -> PinnedProgram:
        client, _sandbox = await self._open()
        program = self._known.get(reference)
        if program is None:
            parsed = Reference.parse(reference, self._settings.registry)
            artifact = await client.resolve(parsed)
            await self._check_signed(client, parsed, artifact.digest)
            pinned = str(replace(parsed, tag=None, digest=artifact.digest))
            program = PinnedProgram(pinned, artifact.program.digest)
            self._known[pinned] = program  # never under a tag, which may be moved
            self._log.info("program resolved", reference=reference, pinned=pinned)
        return program

    async def _check_signed(self, client: RegistryClient, reference: Reference, digest: str) -> None:
        """Refuse a program that nobody has signed who is believed; not as a caller without permission is, who may try again."""
        if not self._settings.signers:
            return
        found = await client.signatures(reference, digest)
        try:
            signer = self._settings.signers.check(str(reference), digest, found)
        except NotSignedError as error:
            raise UnprocessableError(str(error)) from None
        self._log.info("program is signed", reference=str(reference), signer=signer)

    async def _have(self, program: PinnedProgram) -> None:
        client, sandbox = await self._open()
        await self._fetches.run(program.digest, lambda: self._fetch(client, sandbox, program))
        if sandbox.is_native(program.digest):
            self._check_native(program.reference)

    def _check_native(self, reference: str) -> None:
        """Refuse a native program that nobody has allowed, also one that another sandbox with this cache has fetched."""
        settings = self._settings
        if settings.native is not None:
            settings.native.check(reference)
        elif not settings.keeps_native:
            raise UnprocessableError(f"{reference}: {settings.native_help}")

    async def _prepare_early(self, program: PinnedProgram) -> None:
        try:
            await self._have(program)
        except PropellerError as error:  # whoever runs it will be told again
            self._log.warning("program cannot be prepared", program=program.reference, reason=str(error))

    async def _fetch(self, client: RegistryClient, sandbox: Sandbox, program: PinnedProgram) -> None:
        await self._fetch_blob(client, sandbox, program, program.digest)
        if runtime := sandbox.missing_runtime(program.digest):
            await self._fetch_blob(client, sandbox, program, runtime)

    async def _fetch_blob(
        self, client: RegistryClient, sandbox: Sandbox, program: PinnedProgram, digest: str
    ) -> None:
        async with sandbox.fetch_lock(digest, _FETCH_WAIT_S):
            if sandbox.has(digest):
                return
            content = io.BytesIO()
            await client.fetch(Reference.parse(program.reference), digest, content)
            keep = sandbox.keep if is_native(content.getvalue()) else sandbox.add
            await keep(digest, content.getvalue(), self._settings.limits)
