"""What a service is to a stack: what runs it, where it listens, when it starts, and its environment."""

import asyncio
import os
import pkgutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any

from propeller.process.settings import ServiceSettings
from propeller.process.tls import CA_VARIABLE
from propeller.stack.config import StackConfig

_ALWAYS_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PROPELLER_LOG_MAX_BYTES",
)
"""What every service of a stack gets of the environment that the stack was started in."""


class Stage(IntEnum):
    """When a service starts: one stage after another, the services of a stage side by side; they end in the reverse order."""

    BROKER = 0
    IDENTITY = 1  # the stack waits for it and makes the clients that the later stages are
    SERVICES = 2
    DELIVERY = 3
    DEVICES = 4


@dataclass(frozen=True)
class Port:
    """A port that a service listens on.

    Attributes:
        name: in a stack, as ``identity-users``.
        host: its number on the host, as the quick-start guide has it.
        variable: the setting that chooses it.
        container: its number in the service's container.
        http: whether it answers HTTP requests, ``GET /health`` among them.
        published: whether deploy/compose.yaml publishes it on the host.
    """

    name: str
    host: int
    variable: str
    container: int
    http: bool = True
    published: bool = True

    @property
    def host_variable(self) -> str:
        """The variable of deploy/compose.yaml that chooses the port of the host."""
        return f"PORT_{self.name.upper().replace('-', '_')}"


@dataclass(frozen=True)
class ServiceSpec:
    """A service.

    Attributes:
        name: by which ``propeller serve`` knows it.
        settings: its settings class, as ``package.module:Class``.
        main: its entry point likewise: takes the settings, and an event that asks it to stop.
        stage: when it starts.
        ports: where it listens.
        environment: the variables that it gets in a stack, beside those of its ports and its identity; called with the stack
            and the name of the process, which is the service's own but for proplets.
        host_variable: the setting of the address to listen on.
        client: the name at identity of the client of the broker that it is; a proplet's is the name of its process.
        container: its name in deploy/compose.yaml, where that is another.
        reads_proplets: whether it is told the ids of the proplets.
        forked: whether a stack forks it from one process that has imported all of them; else it is an interpreter of its own.
        unsupported: variables that absmach/propeller's service of that name reads and this one does not → what holds instead.
    """

    name: str
    settings: str
    main: str
    stage: Stage
    ports: tuple[Port, ...] = ()
    environment: Callable[[StackConfig, str], dict[str, str]] = lambda _stack, _process: {}
    host_variable: str = ""
    client: str = ""
    container: str = ""
    reads_proplets: bool = False
    forked: bool = True
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def load_settings_class(self) -> type[ServiceSettings]:
        """Import the settings class."""
        found: type[ServiceSettings] = pkgutil.resolve_name(self.settings)
        return found

    def load_main(self) -> Callable[[Any, asyncio.Event], Coroutine[Any, Any, None]]:
        """Import the entry point."""
        found: Callable[[Any, asyncio.Event], Coroutine[Any, Any, None]] = pkgutil.resolve_name(self.main)
        return found

    @property
    def prefix(self) -> str:
        """What the variables of its identity and its log level begin with."""
        return self.name.upper().replace("-", "_")

    @property
    def log_level_variable(self) -> str:
        """The setting of its own log level."""
        return f"{self.prefix}_LOG_LEVEL"

    @property
    def has_http(self) -> bool:
        """Whether it has an HTTP API."""
        return any(port.http for port in self.ports)

    @property
    def is_device(self) -> bool:
        """Whether a stack runs any number of it."""
        return self.stage is Stage.DEVICES

    @property
    def container_name(self) -> str:
        """Its name in deploy/compose.yaml."""
        return self.container or self.name

    def environment_in(self, stack: StackConfig, process: str = "") -> dict[str, str]:
        """The whole environment of one of its processes in a stack: what its container would be given."""
        process = process or self.name
        env = {
            **inherited(*_ALWAYS_INHERITED),
            "PROPELLER_LOG_LEVEL": stack.log_level,
            # One thread each: the services share the machine with the proplets' programs.
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **_certificates(stack, shows=self.has_http),
            **({"PROPELLER_AUDIT_LOG": stack.audit_log(self.name)} if self.has_http else {}),
            **(_access(stack) if self.has_http and self.stage is not Stage.IDENTITY else {}),
            **self.environment(stack, process),
            **{port.variable: str(stack.ports[port.name]) for port in self.ports},
        }
        if self.host_variable:
            env[self.host_variable] = stack.listens_on
        if client := process if self.is_device else self.client:
            known = stack.secrets.clients[client]
            env |= {
                f"{self.prefix}_DOMAIN_ID": stack.secrets.domain_id,
                f"{self.prefix}_CHANNEL_ID": stack.secrets.channel_id,
                f"{self.prefix}_CLIENT_ID": known["id"],
                f"{self.prefix}_CLIENT_KEY": known["key"],
            }
        return {**env, **stack.extra.get(self.name, {})}


def inherited(*patterns: str) -> dict[str, str]:
    """The variables of the environment that the stack was started in, by their names or ``PREFIX_*``."""
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _access(stack: StackConfig) -> dict[str, str]:
    """Who may use a service."""
    return {
        "PROPELLER_AUTH": "off" if stack.open_access else "on",
        "PROPELLER_IDENTITY_URL": stack.url("identity-users"),
        "PROPELLER_DOMAIN_ID": stack.secrets.domain_id,
        **host_variables(stack),
    }


def host_variables(stack: StackConfig) -> dict[str, str]:
    """By which names services are called, and through which proxies."""
    given = inherited("PROPELLER_HOSTS", "PROPELLER_TRUSTED_PROXIES")
    if stack.tls is not None:
        names = [stack.tls.host, given.get("PROPELLER_HOSTS", "")]
        given["PROPELLER_HOSTS"] = ",".join(filter(None, names))
    return given


def _certificates(stack: StackConfig, *, shows: bool) -> dict[str, str]:
    """Which certificates a service believes, and which one it ``shows`` if it has an HTTP API."""
    if stack.tls is None:
        return inherited(CA_VARIABLE)
    shown = {"PROPELLER_TLS_CERT": str(stack.tls.cert), "PROPELLER_TLS_KEY": str(stack.tls.key)}
    return {CA_VARIABLE: str(stack.tls.ca), **(shown if shows else {})}
