"""How a stack is fixed: by the commands of the way it runs."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from propeller.stack.env_file import READERS
from propeller.stack.services import SERVICES

_CONTAINERS = {name: spec.container_name for spec in SERVICES for name in (spec.name, spec.client) if name}
"""The containers of services, by their names and those of the clients that they are."""


class Advice(Protocol):
    """Commands and instructions, a line each."""

    def start(self) -> str:
        """To start the stack."""

    def look(self, service: str) -> str:
        """To see what a service says."""

    def restart(self, service: str) -> str:
        """To have a service again, with what the settings say now."""

    def new_key(self, client: str) -> str:
        """To give a client a key that is accepted."""

    def right_ids(self) -> str:
        """To have the domain and channel that identity knows."""

    def free_port(self, listener: str) -> str:
        """To get a port back from another program."""

    def seed(self) -> str:
        """To have the demo's datasets."""


@dataclass(frozen=True)
class LocalAdvice:
    """For ``propeller up``."""

    state: Path

    def start(self) -> str:
        """To start the stack."""
        return f"propeller up --state {_quoted(self.state)}"

    def look(self, service: str) -> str:
        """To see what a service says."""
        return f"propeller logs --state {_quoted(self.state)} --service {service}"

    def restart(self, service: str) -> str:
        """To have a service again."""
        return f"end the stack (Ctrl-C) and start it again: {self.start()}; why: {self.look(service)}"

    def new_key(self, client: str) -> str:
        """A start replaces the keys that identity refuses."""
        return f"end the stack (Ctrl-C) and start it again: {self.start()}; it gives {client} a new key"

    def right_ids(self) -> str:
        """A stack writes them at its start."""
        return f"end the stack (Ctrl-C) and start it again: {self.start()}; it rewrites {self.state / '.env'}"

    def free_port(self, listener: str) -> str:
        """Its owner gives it up, or the stack takes others."""
        return f"end {listener}, or take free ports: {self.start()} --ports auto"

    def seed(self) -> str:
        """They are made at the start."""
        return f"end the stack (Ctrl-C) and start it again: {self.start()}"


@dataclass(frozen=True)
class ContainerAdvice:
    """For the containers of ``deploy/compose.yaml``."""

    env_file: Path

    def start(self) -> str:
        """To start the stack."""
        return f"{self._compose} up -d"

    def look(self, service: str) -> str:
        """To see what a service says."""
        return f"{self._compose} logs --tail 50 {_container(service)}"

    def restart(self, service: str) -> str:
        """A container reads its environment only when it is made."""
        return f"{self._recreate(_container(service))}; why: {self.look(service)}"

    def new_key(self, client: str) -> str:
        """Provisioning makes new ones only when told so."""
        provision = f"propeller provision --rotate --env-file {_quoted(self.env_file)}"
        return f"{provision} (new keys for {client} and the others), then {self._recreate()}"

    def right_ids(self) -> str:
        """Provisioning writes them."""
        return f"propeller provision --env-file {_quoted(self.env_file)}, then {self._recreate()}"

    def free_port(self, listener: str) -> str:
        """Its owner gives it up."""
        return f"end {listener}, then {self.start()}"

    def seed(self) -> str:
        """A start makes them for the proplets in its environment."""
        return self._recreate("local-data-store")

    def _recreate(self, services: str = READERS) -> str:
        return f"{self._compose} up -d --force-recreate {services}"

    @property
    def _compose(self) -> str:
        return f"docker compose -f deploy/compose.yaml --env-file {_quoted(self.env_file)}"


@dataclass(frozen=True)
class RemoteAdvice:
    """For a stack elsewhere: what can be done from here, and what on its machine.

    Attributes:
        options: of commands, by which they are about this stack; empty after a login.
    """

    options: str = ""

    def start(self) -> str:
        """To start the stack."""
        return "start it on its machine (propeller up), and see that no firewall is between"

    def look(self, service: str) -> str:
        """To see what a service says."""
        return f"propeller logs --service {service}{self.options}"

    def restart(self, service: str) -> str:
        """To have a service again."""
        return f"on its machine, see why in its log and start it again (propeller logs --service {service}); or see that no firewall is between"

    def new_key(self, client: str) -> str:
        """To give a client a key that is accepted."""
        return f"on its machine, start the stack again: it gives {client} a new key"

    def right_ids(self) -> str:
        """To have the domain and channel that identity knows."""
        return "on its machine: propeller doctor"

    def free_port(self, listener: str) -> str:
        """To get a port back from another program."""
        return f"give the address of the service (--url NAME=URL), or end {listener}"

    def seed(self) -> str:
        """To have the demo's datasets."""
        return "on its machine, start the stack again"


def _container(name: str) -> str:
    return _CONTAINERS.get(name, name.removesuffix("-1"))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
