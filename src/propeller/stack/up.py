"""``propeller up``: every service of the guide on this machine, ready to be used, until told to stop."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError

from propeller.data import program_path
from propeller.errors import StartError
from propeller.identity.settings import MIN_PASSWORD
from propeller.process import logs
from propeller.process.http import verify_for
from propeller.process.retry import retry
from propeller.process.tls import trust_stack
from propeller.stack.config import HOST, StackConfig
from propeller.stack.env_file import EnvFile, client_variables, env_values
from propeller.stack.network import prepare_network, renew_certificate
from propeller.stack.ports import GUIDE_PORTS, MQTTS_PORT, free_ports, guide_ports
from propeller.stack.provisioning import Provisioner, client_names, device_names
from propeller.stack.service_spec import ServiceSpec, Stage
from propeller.stack.services import HTTP_SERVICES, IDENTITY_LISTENERS, OPERATOR, find_service, in_stage
from propeller.stack.state_folder import StateFolder
from propeller.stack.supervisor import ProcessSpec, Supervisor

PROGRAM_NAME = "fl-client-wasm"
"""The guide's name for the program that a new stack's registry holds."""

READY_S = 30.0
"""How long a service may take until it answers, in seconds."""

PROPLET_READY_S = 1.0
"""How much longer each proplet may take to be there: they are interpreters that share the processors."""

_POLL_S = 0.02

Report = Callable[[str, str], None]
"""Told of progress: what is ready, and where."""


@dataclass(frozen=True)
class Options:
    """How to run a stack.

    Attributes:
        folder: where its state is.
        proplets: how many proplets to run beside the services.
        auto_ports: take free ports instead of the guide's.
        log_level: of every service.
        extra: environment variables for single services, by service name.
        tags: tags of proplets, by the proplet's name.
        open_access: let anyone on this machine use the services.
        host: the name or address by which others reach the stack over a network, with TLS; without one it stays on loopback.
        native_python: the interpreter of proplets and coordinator for native programs, which run where one is given.
    """

    folder: Path
    proplets: int = 3
    auto_ports: bool = False
    log_level: str = "info"
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    open_access: bool = False
    host: str | None = None
    native_python: Path | None = None


@contextlib.asynccontextmanager
async def stack(
    options: Options, report: Report = lambda _what, _where: None
) -> AsyncIterator[dict[str, Any]]:
    """Run a stack for the length of the block; gives what ``stack.json`` holds. This process logs to ``logs/up.log`` from then on.

    Raises:
        StartError: a service cannot start; everything started is ended, and the text says which and why.
    """
    folder = StateFolder(options.folder)
    folder.lock()
    try:
        logs.configure("up", level=options.log_level, file=folder.log_file("up"))
    except OSError as error:
        folder.release()
        raise StartError(
            f"cannot log to {folder.log_file('up')}: {error.strerror}; choose another folder with --state"
        ) from None
    supervisor = Supervisor()
    reserved = contextlib.ExitStack()
    renewal: asyncio.Task[None] | None = None
    try:
        description = await _Start(options, folder, supervisor, report, reserved).run()
        if options.host is not None:
            renewal = asyncio.create_task(renew_certificate(folder.folder, options.host))
        yield description
    finally:
        if renewal is not None:
            renewal.cancel()
        folder.stack_file.unlink(missing_ok=True)
        await supervisor.close(*(_processes(stage, options.proplets) for stage in reversed(Stage)))
        reserved.close()
        folder.release()


def _processes(stage: Stage, proplets: int) -> list[str]:
    """The names of the processes that start in a stage."""
    return device_names(proplets) if stage is Stage.DEVICES else [spec.name for spec in in_stage(stage)]


def _keeps_keys() -> bool:
    """Whether identity is to keep clients' keys readable.

    Raises:
        StartError: the setting says neither yes nor no.
    """
    said = os.environ.get("IDENTITY_KEYS_READABLE") or "false"
    try:
        return TypeAdapter(bool).validate_python(said)
    except ValidationError:
        raise StartError(f"IDENTITY_KEYS_READABLE: {said!r} is neither true nor false") from None


class _NotReadyError(Exception):
    """What is waited for is not there yet."""


class _Start:
    """The steps of a stack's start."""

    def __init__(
        self,
        options: Options,
        folder: StateFolder,
        supervisor: Supervisor,
        report: Report,
        reserved: contextlib.ExitStack,
    ) -> None:
        """``reserved`` keeps free ports from others until it is closed."""
        self._options, self._folder, self._supervisor, self._report = options, folder, supervisor, report
        password = os.environ.get("IDENTITY_ADMIN_PASSWORD")
        if password and len(password) < MIN_PASSWORD:  # before it is saved
            raise StartError(
                f"IDENTITY_ADMIN_PASSWORD: at least {MIN_PASSWORD} characters, or unset for a random one"
            )
        keep_keys = _keeps_keys()
        secrets = folder.load_secrets(os.environ.get("IDENTITY_ADMIN_USERNAME"), password)
        if keep_keys and not secrets.client_keys:
            for known in secrets.clients.values():
                known["key"] = ""  # made anew: identity can keep those alone that it makes from now on
            if secrets.clients:
                report(
                    "keys", "new ones for its clients, which admins may read again (IDENTITY_KEYS_READABLE)"
                )
        secrets.client_keys = (secrets.client_keys or token_urlsafe(32)) if keep_keys else ""
        folder.save_secrets(secrets)
        if options.auto_ports:
            ports = secrets.ports = free_ports(reserved, secrets.ports)
        else:
            ports = guide_ports(
                GUIDE_PORTS if options.host is None else {**GUIDE_PORTS, "broker": MQTTS_PORT}
            )
        if options.open_access and os.environ.get("PROPELLER_AUTH") == "on":
            raise StartError("PROPELLER_AUTH=on contradicts --open: unset it, or leave --open out")
        if options.open_access and options.host is not None:
            raise StartError("--open is for a stack on loopback: leave out --host or --open")
        tls = None if options.host is None else prepare_network(folder.folder, options.host)
        if tls is not None:
            trust_stack(tls.ca)
        self._config = StackConfig(
            folder,
            ports,
            secrets,
            options.log_level,
            options.extra,
            options.tags,
            options.open_access,
            tls,
            options.native_python,
        )
        verify = verify_for(self._config.url("manager"))
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False, verify=verify)

    async def run(self) -> dict[str, Any]:
        """Start everything; gives what ``stack.json`` holds."""
        async with self._http:
            await self._start_stage(Stage.BROKER)
            await self._start_stage(Stage.IDENTITY)
            await self._wait_healthy(Stage.IDENTITY)
            self._report("broker", self._config.broker)
            await self._provision()
            for stage in (Stage.SERVICES, Stage.DELIVERY, Stage.DEVICES):
                await self._start_stage(stage)
            await self._wait_healthy(Stage.SERVICES, Stage.DELIVERY)
            image = await self._push_program()
            await self._wait_for_proplets(device_names(self._options.proplets))
        description = self._describe(image)
        self._folder.write_stack(description)
        return description

    @property
    def _operator(self) -> tuple[str, str]:
        """The id and key by which this process calls the services."""
        client = self._config.secrets.clients[OPERATOR]
        return client["id"], client["key"]

    async def _start_stage(self, stage: Stage) -> None:
        for spec in in_stage(stage):
            for name in _processes(stage, self._options.proplets) if spec.is_device else [spec.name]:
                env = spec.environment_in(self._config, name)
                log_file = self._folder.log_file(name)
                await self._supervisor.start(ProcessSpec(name, spec.name, env, log_file, forked=spec.forked))

    async def _wait_healthy(self, *stages: Stage) -> None:
        """Wait until every service of some stages answers."""
        specs = [spec for stage in stages for spec in in_stage(stage) if spec.has_http]
        await asyncio.gather(*map(self._wait_for_service, specs))

    async def _wait_for_service(self, spec: ServiceSpec) -> None:
        url = self._config.url(spec.ports[0].name)

        async def answers() -> bool:
            try:
                return (await self._http.get(f"{url}/health")).is_success
            except httpx.TransportError:
                return False

        await self._wait_until(answers, spec.name, f"{spec.name} does not answer on {url}/health")
        self._report(spec.name, url)

    async def _provision(self) -> None:
        provisioner = Provisioner(*(self._config.url(f"identity-{name}") for name in IDENTITY_LISTENERS))
        try:
            await provisioner.ensure(self._config.secrets, self._options.proplets, self._options.tags)
        finally:
            await provisioner.aclose()
            self._folder.save_secrets(self._config.secrets)
        self._write_env_file()

    def _write_env_file(self) -> None:
        """The guide's variables, so that its commands work here too; proplets that do not run now have empty ones."""
        secrets = self._config.secrets
        running = {name: secrets.clients[name] for name in client_names(self._options.proplets)}
        values = env_values(secrets.domain_id, secrets.channel_id, running)
        absent = client_variables(name for name in secrets.clients if name not in running)
        try:
            file = EnvFile.read(self._folder.env_file)
            file.write(file.updated({**values, **dict.fromkeys(absent, "")}))
        except StartError as error:
            raise StartError(f"{error}; or choose another state folder with --state") from None

    async def _push_program(self) -> str:
        from propeller.oci.client import RegistryClient
        from propeller.oci.reference import Reference

        registry_url = self._config.url("oci-registry").removeprefix("http://")  # the scheme of loopback
        reference = Reference.parse(f"{registry_url}/{PROGRAM_NAME}:latest")
        async with RegistryClient() as registry:
            await registry.push(reference, program_path("logreg"))
        self._report("program", str(reference))
        return str(reference)

    async def _wait_for_proplets(self, names: list[str]) -> None:
        missing = {self._config.secrets.clients[name]["id"]: name for name in names}

        async def all_alive() -> bool:
            answer = await self._http.get(
                f"{self._config.url('manager')}/proplets", params={"limit": 1000}, auth=self._operator
            )
            answer.raise_for_status()
            for proplet in answer.json()["proplets"]:
                if proplet["alive"] and (name := missing.pop(proplet["id"], None)):
                    self._report(name, proplet["id"])
            return not missing

        await self._wait_until(
            all_alive,
            names[0] if names else "",
            "the proplets do not register with the manager",
            READY_S + len(names) * PROPLET_READY_S,
        )

    async def _wait_until(
        self, check: Callable[[], Awaitable[bool]], process: str, otherwise: str, seconds: float = READY_S
    ) -> None:
        """Wait until a check is true; ``otherwise`` is what to say if it never is, ``process`` whose log tells why."""

        async def look() -> None:
            if await check():
                return
            for name in self._supervisor.pids:
                if reason := self._supervisor.failed_to_start(name):
                    raise StartError(f"{name} cannot start: {reason}")
            raise _NotReadyError

        try:
            async with asyncio.timeout(seconds):
                await retry(
                    look,
                    delays=(_POLL_S,),
                    on=lambda error: isinstance(error, _NotReadyError),
                    forever=True,
                )
        except TimeoutError:
            raise StartError(f"{otherwise}; see {self._folder.log_file(process)}") from None

    def _describe(self, image: str) -> dict[str, Any]:
        config = self._config
        identity = {name: config.url(f"identity-{name}") for name in IDENTITY_LISTENERS}
        services: dict[str, Any] = {"identity": {"url": identity["users"], **identity}}
        for name in HTTP_SERVICES:
            if name not in services:
                services[name.replace("-", "_")] = {"url": config.url(find_service(name).ports[0].name)}
        return {
            "services": services,
            "broker": {"host": HOST, "port": config.ports["broker"]},
            "domain_id": config.secrets.domain_id,
            "channel_id": config.secrets.channel_id,
            "clients": {name: config.secrets.clients[name] for name in client_names(self._options.proplets)},
            "admin": {"username": config.secrets.admin_username, "password": config.secrets.admin_password},
            "images": {PROGRAM_NAME: image},
            **(config.tls.described() if config.tls else {}),
            "processes": {"up": os.getpid(), **self._supervisor.pids},
        }
