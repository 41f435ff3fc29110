"""What a stack tells its services: its folder, ports and secrets, and how it is reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from propeller.stack.state_folder import Secrets, StateFolder

HOST = "127.0.0.1"
"""Where the services listen that are not reached over a network."""


@dataclass(frozen=True)
class StackTls:
    """A stack that others reach over a network.

    Attributes:
        host: the name or address by which they do.
        ca: the authority's certificate.
        cert: that of every server.
        key: to that.
    """

    host: str
    ca: Path
    cert: Path
    key: Path

    def described(self) -> dict[str, str]:
        """What ``stack.json`` has of it."""
        return {"host": self.host, "ca": str(self.ca), "certificate": str(self.cert)}


@dataclass(frozen=True)
class StackConfig:
    """What a stack tells its services."""

    folder: StateFolder
    ports: Mapping[str, int]
    secrets: Secrets
    log_level: str = "info"
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further variables, by the service's name."""
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The tags of devices, by their names, beside those that ``PROPLET_TAGS`` gives to all."""
    open_access: bool = False
    """Whether anyone on this machine may use the services."""
    tls: StackTls | None = None
    """How the services are reached over a network; without it they listen on loopback alone."""
    native_python: Path | None = None
    """The interpreter of proplets and coordinator for native programs, which run where it is set."""

    @property
    def listens_on(self) -> str:
        """The address that the services listen on."""
        return HOST if self.tls is None else "0.0.0.0"

    def url(self, port: str) -> str:
        """The address of an HTTP API, by the name of its port."""
        return f"http{'s' if self.tls else ''}://{HOST}:{self.ports[port]}"

    @property
    def broker(self) -> str:
        """The broker's address."""
        return f"{'mqtts' if self.tls else 'tcp'}://{HOST}:{self.ports['broker']}"

    def outside(self, address: str) -> str:
        """An address of this machine as devices elsewhere reach it; without TLS there are none, and devices here use the same."""
        return address if self.tls is None else address.replace(HOST, self.tls.host)

    @property
    def nats(self) -> str:
        """The address by which identity answers the broker's questions."""
        return f"nats://{HOST}:{self.ports['nats']}"

    def audit_log(self, name: str) -> str:
        """The audit log of a service."""
        return str(self.folder.audit_log(name))

    def data(self, name: str) -> str:
        """The folder of a service, or of a proplet."""
        return str(self.folder.service_folder(name))
