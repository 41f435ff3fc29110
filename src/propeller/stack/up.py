"""``propeller up``: every service of the guide on this machine, ready to be used, until told to stop."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from propeller.data import program_path
from propeller.identity.settings import MIN_PASSWORD
from propeller.process.run import StartError
from propeller.stack.env_file import EnvFile
from propeller.stack.environment import HOST, Wiring
from propeller.stack.ports import free_ports, guide_ports
from propeller.stack.provisioning import Provisioner, client_names, device_names
from propeller.stack.services import HTTP_SERVICES, LISTENERS
from propeller.stack.state import State
from propeller.stack.supervisor import Plan, Supervisor
from propeller.stack.variables import client_variables, env_values

PROGRAM_NAME = "fl-client-wasm"
"""The guide's name for the program that a new stack's registry holds."""

READY_S = 30.0

_FIRST = ("broker", "identity")
_SECOND = ("model-registry", "data-store", "aggregator", "coordinator", "manager", "oci-registry", "proxy")

Report = Callable[[str, str], None]
"""Told of progress: what is ready, and where."""


@dataclass(frozen=True)
class Options:
    """How to run a stack.

    Attributes:
        folder: where its state is.
        proplets: how many devices to run beside the services.
        auto_ports: take free ports instead of the guide's.
        extra: environment variables for single services, by service name.
    """

    folder: Path
    proplets: int = 3
    auto_ports: bool = False
    log_level: str = "info"
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def stack(
    options: Options, report: Report = lambda _what, _where: None
) -> AsyncIterator[dict[str, Any]]:
    """Run a stack for the length of the block; gives what ``stack.json`` holds.

    Raises:
        StartError: a service cannot start; everything started is ended, and the text says which and why.
    """
    state = State(options.folder)
    state.hold()
    state.stack_file.unlink(missing_ok=True)  # of a stack that was killed: it says that this one is ready
    supervisor = Supervisor()
    held = contextlib.ExitStack()
    try:
        started = _Stack(options, state, supervisor, report, held)
        yield await started.start()
    finally:
        state.stack_file.unlink(missing_ok=True)
        # Devices first, then what they talk to, then what those talk to; the broker is the last.
        services = [name for name in _SECOND if name != "proxy"]
        await supervisor.close(device_names(options.proplets), ["proxy"], services, ["identity"])
        held.close()
        state.release()


class _Stack:
    """The steps of a start."""

    def __init__(
        self,
        options: Options,
        state: State,
        supervisor: Supervisor,
        report: Report,
        held: contextlib.ExitStack,
    ) -> None:
        self._options, self._state, self._supervisor, self._report = options, state, supervisor, report
        password = os.environ.get("IDENTITY_ADMIN_PASSWORD")
        if password and len(password) < MIN_PASSWORD:  # before it is kept
            raise StartError(
                f"IDENTITY_ADMIN_PASSWORD: at least {MIN_PASSWORD} characters, or unset for a random one"
            )
        secrets = state.secrets(os.environ.get("IDENTITY_ADMIN_USERNAME"), password)
        if options.auto_ports:
            ports = secrets.ports = free_ports(held, secrets.ports)
        else:
            ports = guide_ports()
        self._wiring = Wiring(state, ports, secrets, options.log_level, options.extra)
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False, verify=False)  # noqa: S501 - loopback, no TLS

    async def start(self) -> dict[str, Any]:
        async with self._http:
            for service in _FIRST:
                await self._launch(service)
            await self._healthy("identity", "identity-users")
            await self._provision()
            for service in _SECOND:
                await self._launch(service)
            proplets = device_names(self._options.proplets)
            for name in proplets:
                env = self._wiring.of_proplet(name)
                await self._supervisor.start(
                    Plan(name, "proplet", env, self._state.log_file(name), own_interpreter=True)
                )
            await asyncio.gather(*(self._healthy(service, service) for service in _SECOND))
            image = await self._push_program()
            await self._proplets_alive(proplets)
        description = self._describe(image)
        self._state.publish(description)
        return description

    async def _launch(self, service: str) -> None:
        plan = Plan(service, service, self._wiring.of(service), self._state.log_file(service))
        await self._supervisor.start(plan)

    async def _healthy(self, service: str, port: str) -> None:
        url = f"{self._wiring.url(port)}/health"

        async def answers() -> bool:
            try:
                return (await self._http.get(url)).is_success
            except httpx.TransportError:
                return False

        await self._until(answers, service, f"{service} does not answer on {url}")
        self._report(service, self._wiring.url(port))
        if service == "identity":
            self._report("broker", self._wiring.broker)

    async def _provision(self) -> None:
        urls = (self._wiring.url(f"identity-{name}") for name in LISTENERS)
        provisioner = Provisioner(*urls)
        try:
            await provisioner.ensure(self._wiring.secrets, self._options.proplets)
        finally:
            await provisioner.aclose()
            self._state.keep(self._wiring.secrets)
        self._write_env_file()

    def _write_env_file(self) -> None:
        """The guide's variables, so that its commands work here too; proplets that do not run now have empty ones."""
        secrets = self._wiring.secrets
        running = {name: secrets.clients[name] for name in client_names(self._options.proplets)}
        values = env_values(secrets.domain_id, secrets.channel_id, running)
        absent = client_variables(name for name in secrets.clients if name not in running)
        try:
            file = EnvFile.read(self._state.env_file)
            file.write(file.updated({**values, **dict.fromkeys(absent, "")}))
        except StartError as error:
            raise StartError(f"{error}; or choose another state folder with --state") from None

    async def _push_program(self) -> str:
        from propeller.oci.client import RegistryClient
        from propeller.oci.reference import Reference

        reference = Reference.parse(f"{HOST}:{self._wiring.ports['oci-registry']}/{PROGRAM_NAME}:latest")
        async with RegistryClient() as registry:
            await registry.push(reference, program_path("logreg"))
        self._report("program", str(reference))
        return str(reference)

    async def _proplets_alive(self, names: list[str]) -> None:
        wanted = {self._wiring.secrets.clients[name]["id"]: name for name in names}

        async def one_more() -> bool:
            answer = await self._http.get(f"{self._wiring.url('manager')}/proplets", params={"limit": 1000})
            answer.raise_for_status()
            for proplet in answer.json()["proplets"]:
                if proplet["alive"] and (name := wanted.pop(proplet["id"], None)):
                    self._report(name, proplet["id"])
            return not wanted

        await self._until(
            one_more, names[0] if names else "", "the proplets do not register with the manager"
        )

    async def _until(self, check: Callable[[], Any], name: str, otherwise: str) -> None:
        try:
            async with asyncio.timeout(READY_S):
                while not await check():
                    for started in self._supervisor.pids:
                        if reason := self._supervisor.failed_to_start(started):
                            raise StartError(f"{started} cannot start: {reason}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise StartError(f"{otherwise}; see {self._state.log_file(name)}") from None

    def _describe(self, image: str) -> dict[str, Any]:
        wiring = self._wiring
        identity = {name: wiring.url(f"identity-{name}") for name in LISTENERS}
        services: dict[str, Any] = {"identity": {"url": identity["users"], **identity}}
        for service in HTTP_SERVICES[1:]:
            services[service.replace("-", "_")] = {"url": wiring.url(service)}
        return {
            "services": services,
            "broker": {"host": HOST, "port": wiring.ports["broker"]},
            "domain_id": wiring.secrets.domain_id,
            "channel_id": wiring.secrets.channel_id,
            "clients": {name: wiring.secrets.clients[name] for name in client_names(self._options.proplets)},
            "admin": {"username": wiring.secrets.admin_username, "password": wiring.secrets.admin_password},
            "images": {PROGRAM_NAME: image},
            "processes": {"up": os.getpid(), **self._supervisor.pids},
        }
