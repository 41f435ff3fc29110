"""Every service, described once: what runs it, where it listens, when it starts, and what a stack tells it.

``propeller up``, ``serve``, ``status``, ``logs``, the doctor, the fork server and the tests of deploy/compose.yaml read this. A new
service is a new ``ServiceSpec`` here. Nothing of a service is imported before it is asked for.
"""

import asyncio
import contextlib
import os
import pkgutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from propeller.errors import StartError
from propeller.process.settings import ServiceSettings
from propeller.process.tls import CA_VARIABLE
from propeller.stack import unsupported_variables
from propeller.stack.state_folder import Secrets, StateFolder
from propeller.wasm.runtimes import runtimes_folder

HOST = "127.0.0.1"

IDENTITY_LISTENERS = ("users", "domains", "channels", "clients")
"""Identity has a port for each."""

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
    """The interpreter of the proplets here for native programs, which run where it is set."""

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
            **_inherited(*_ALWAYS_INHERITED),
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


def _inherited(*patterns: str) -> dict[str, str]:
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
        **_names(stack),
    }


def _names(stack: StackConfig) -> dict[str, str]:
    """By which names services are called, and through which proxies."""
    given = _inherited("PROPELLER_HOSTS", "PROPELLER_TRUSTED_PROXIES")
    if stack.tls is not None:
        names = [stack.tls.host, given.get("PROPELLER_HOSTS", "")]
        given["PROPELLER_HOSTS"] = ",".join(filter(None, names))
    return given


def _certificates(stack: StackConfig, *, shows: bool) -> dict[str, str]:
    """Which certificates a service believes, and which one it ``shows`` if it has an HTTP API."""
    if stack.tls is None:
        return _inherited(CA_VARIABLE)
    shown = {"PROPELLER_TLS_CERT": str(stack.tls.cert), "PROPELLER_TLS_KEY": str(stack.tls.key)}
    return {CA_VARIABLE: str(stack.tls.ca), **(shown if shows else {})}


def _runtimes() -> dict[str, str]:
    """Where the user's own commands make Python runtimes: what runs programs on this machine need not fetch and compile them again."""
    return {"PROPELLER_RUNTIMES": os.environ.get("PROPELLER_RUNTIMES") or str(runtimes_folder())}


def _programs(stack: StackConfig) -> str:
    """The folder of programs, one for all that run them on this machine: each is compiled once."""
    return os.environ.get("PROPLET_CACHE") or stack.data("programs")


def _registries(stack: StackConfig, service: str) -> dict[str, str]:
    """Where a service may fetch programs: the stack's own registry, by both names of loopback, the proxy's, and its own ones."""
    own, variable = stack.url("oci-registry"), f"{service}_ALLOWED_REGISTRIES"
    named = [os.environ.get(name) for name in ("PROXY_ALLOWED_REGISTRIES", variable)]
    if proxys := os.environ.get("PROXY_REGISTRY_URL"):
        from propeller.oci.errors import InvalidReferenceError
        from propeller.oci.reference import DefaultRegistry

        with contextlib.suppress(InvalidReferenceError):  # the proxy says so
            named.append(str(DefaultRegistry.parse(proxys).registry))
    names = ["localhost", *([stack.tls.host] if stack.tls else [])]
    by_name = [own.replace(HOST, name) for name in names]
    return {variable: ",".join(dict.fromkeys(filter(None, (own, *by_name, *named))))}


def _signers(service: str) -> dict[str, str]:
    """Whose programs a service runs: its own setting, else that of the proxy, whose programs devices run."""
    variable = f"{service}_SIGNERS"
    named = os.environ.get(variable) or os.environ.get("PROXY_SIGNERS")
    return {variable: named} if named else {}


def _broker(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "BROKER_STATE": stack.data(process),
        "BROKER_SECRET": stack.secrets.broker,
        **_inherited("BROKER_MAX_*", "PROPELLER_NATS_SERVER"),
        **(
            {"BROKER_TLS_CERT": str(stack.tls.cert), "BROKER_TLS_KEY": str(stack.tls.key)}
            if stack.tls
            else {}
        ),
    }


def _identity(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "IDENTITY_DATABASE": f"{stack.data(process)}/identity.db",
        "IDENTITY_ADMIN_USERNAME": stack.secrets.admin_username,
        "IDENTITY_ADMIN_PASSWORD": stack.secrets.admin_password,
        "BROKER_SECRET": stack.secrets.broker,
        "BROKER_NATS_URL": stack.nats,
        **_joining(stack),
        **({"IDENTITY_KEYS_SECRET": stack.secrets.client_keys} if stack.secrets.client_keys else {}),
        **_inherited(
            "IDENTITY_KEYS_*",
            "BROKER_CLIENT_*",
            "BROKER_SESSION_EXPIRY",
            "BROKER_STORED_BYTES",
        ),
        **_names(stack),
    }


def _joining(stack: StackConfig) -> dict[str, str]:
    """What identity tells devices that join."""
    told = {
        "URL": stack.url("identity-users"),
        "BROKER": stack.broker,
        "COORDINATOR_URL": stack.url("coordinator"),
        "MODEL_REGISTRY_URL": stack.url("model-registry"),
        "DATA_STORE_URL": stack.url("data-store"),
    }
    return {
        **{f"IDENTITY_JOIN_{name}": stack.outside(address) for name, address in told.items()},
        **({"IDENTITY_JOIN_CA_CERT": str(stack.tls.ca)} if stack.tls else {}),
    }


def _manager(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "MANAGER_MQTT_ADDRESS": stack.broker,
        "MANAGER_DATABASE": f"{stack.data(process)}/manager.db",
        "PROPELLER_IDENTITY_URL": stack.url("identity-users"),
        "COORDINATOR_URL": stack.url("coordinator"),
        **_inherited("MANAGER_MAX_*", "MANAGER_*_KEEP"),
    }


def _coordinator(stack: StackConfig, process: str) -> dict[str, str]:
    client = stack.secrets.clients["fl-coordinator"]
    return {
        "COORDINATOR_REGISTRY_URL": stack.url("oci-registry"),
        **{  # those of the proxy, as it runs the programs that devices run
            name.replace("PROXY", "COORDINATOR", 1): value
            for name, value in _inherited("PROXY_REGISTRY_*").items()
        },
        **_registries(stack, "COORDINATOR"),
        **_signers("COORDINATOR"),
        "COORDINATOR_PROGRAM_CACHE": _programs(stack),
        **_runtimes(),
        **_inherited(
            "COORDINATOR_CACHE_BYTES",
            "COORDINATOR_KEEP_*",
            "COORDINATOR_MAX_*",
            "COORDINATOR_PROGRAM_*",
            "DOCKER_CONFIG",
        ),
        "COORDINATOR_STATE": stack.data(process),
        "MODEL_REGISTRY_URL": stack.url("model-registry"),
        "AGGREGATOR_URL": stack.url("aggregator"),
        "DATA_STORE_URL": stack.url("data-store"),
        "MQTT_BROKER": stack.broker,
        "MQTT_CLIENT_ID": client["id"],
        "MQTT_USERNAME": client["id"],
        "MQTT_PASSWORD": client["key"],
    }


def _aggregator(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "AGGREGATOR_REGISTRY_URL": stack.url("oci-registry"),
        "AGGREGATOR_SPILL": f"{stack.data(process)}/spill",
        "AGGREGATOR_PROGRAM_CACHE": _programs(stack),
        **_runtimes(),
        **_inherited("AGGREGATOR_*", "DOCKER_CONFIG"),
        **_registries(stack, "AGGREGATOR"),
        **_signers("AGGREGATOR"),
        "AGGREGATOR_CACHE": stack.data(process),
    }


def _model_registry(stack: StackConfig, process: str) -> dict[str, str]:
    return {"MODELS_DIR": stack.data(process), **_inherited("REGISTRY_*_BYTES", "REGISTRY_DEVICE_MODELS")}


def _data_store(stack: StackConfig, process: str) -> dict[str, str]:
    proplets = [known["id"] for name, known in stack.secrets.clients.items() if name.startswith("proplet-")]
    return {
        "DATA_DIR": stack.data(process),
        "FL_DATASET_PARTICIPANTS": ",".join(proplets),
        **_inherited("DATA_STORE_MAX_*"),
    }


def _oci_registry(stack: StackConfig, process: str) -> dict[str, str]:
    return {"OCI_REGISTRY_FOLDER": stack.data(process), **_inherited("OCI_REGISTRY_MAX_*")}


def _proxy(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "PROXY_REGISTRY_URL": stack.url("oci-registry"),
        **_inherited("PROXY_*", "DOCKER_CONFIG"),
        **_registries(stack, "PROXY"),
        "PROXY_MQTT_ADDRESS": stack.broker,
        "PROXY_CACHE": stack.data(process),
    }


def _native(stack: StackConfig) -> dict[str, str]:
    """Has the proplets here run native programs of the stack's own registry, or those that the policy of the environment names."""
    if stack.native_python is None:
        return {}
    from propeller.proplet.policy import NATIVE_POLICY, write_native_policy

    policy = os.environ.get("PROPLET_POLICY")
    if not policy:
        port = stack.ports["oci-registry"]
        hosts = dict.fromkeys((HOST, "localhost", stack.outside(HOST)))
        policy = str(stack.folder.folder / NATIVE_POLICY)
        write_native_policy(
            Path(policy), [f"{host}:{port}/*" for host in hosts], "propeller up --native-python"
        )
    return {"PROPLET_NATIVE_PYTHON": str(stack.native_python), "PROPLET_POLICY": policy}


def _proplet(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "PROPLET_CACHE": _programs(stack),
        **_runtimes(),
        **_inherited(
            "PROPLET_*_BYTES",
            "PROPLET_MAX_*",
            "PROPLET_MQTT_MAX_PACKET_SIZE",
            "PROPLET_NATIVE_PYTHON",
            "PROPLET_POLICY",
            "PROPLET_STATE_DAYS",
            "PROPLET_TASK_*",
        ),
        **_native(stack),
        "PROPLET_TAGS": ",".join(
            filter(None, (os.environ.get("PROPLET_TAGS"), *stack.tags.get(process, ())))
        ),
        "PROPLET_INSTANCE_ID": process,
        "PROPLET_MQTT_ADDRESS": stack.broker,
        "PROPLET_STATE": stack.data(process),
        "MODEL_REGISTRY_URL": stack.url("model-registry"),
        "DATA_STORE_URL": stack.url("data-store"),
        "COORDINATOR_URL": stack.url("coordinator"),
    }


SERVICES = (
    ServiceSpec(
        "broker",
        "propeller.mqtt.broker_config:BrokerSettings",
        "propeller.mqtt.broker:main",
        Stage.BROKER,
        (
            Port("broker", 1883, "BROKER_PORT", 1883, http=False),
            Port("nats", 4222, "BROKER_NATS_PORT", 4222, http=False, published=False),
        ),
        _broker,
        "BROKER_HOST",
    ),
    ServiceSpec(
        "identity",
        "propeller.identity.settings:IdentitySettings",
        "propeller.identity.main:main",
        Stage.IDENTITY,
        tuple(
            Port(f"identity-{name}", number, f"IDENTITY_{name.upper()}_PORT", number)
            for name, number in zip(IDENTITY_LISTENERS, (9002, 9003, 9005, 9006), strict=True)
        ),
        _identity,
        "IDENTITY_HOST",
    ),
    ServiceSpec(
        "manager",
        "propeller.manager.settings:ManagerSettings",
        "propeller.manager.main:main",
        Stage.SERVICES,
        (Port("manager", 7070, "MANAGER_HTTP_PORT", 7070),),
        _manager,
        "MANAGER_HTTP_HOST",
        client="manager",
        unsupported=unsupported_variables.MANAGER,
    ),
    ServiceSpec(
        "coordinator",
        "propeller.coordinator.settings:CoordinatorSettings",
        "propeller.coordinator.main:main",
        Stage.SERVICES,
        (Port("coordinator", 8086, "COORDINATOR_PORT", 8080),),
        _coordinator,
        "COORDINATOR_HOST",
        client="fl-coordinator",
        container="coordinator-http",
    ),
    ServiceSpec(
        "aggregator",
        "propeller.aggregator.settings:AggregatorSettings",
        "propeller.aggregator.api:main",
        Stage.SERVICES,
        (Port("aggregator", 8085, "AGGREGATOR_PORT", 8082),),
        _aggregator,
        "AGGREGATOR_HOST",
    ),
    ServiceSpec(
        "model-registry",
        "propeller.model_registry.settings:ModelRegistrySettings",
        "propeller.model_registry.api:main",
        Stage.SERVICES,
        (Port("model-registry", 8084, "REGISTRY_PORT", 8081),),
        _model_registry,
        "REGISTRY_HOST",
    ),
    ServiceSpec(
        "data-store",
        "propeller.data_store.settings:DataStoreSettings",
        "propeller.data_store.api:main",
        Stage.SERVICES,
        (Port("data-store", 8083, "DATA_STORE_PORT", 8083),),
        _data_store,
        "DATA_STORE_HOST",
        container="local-data-store",
        reads_proplets=True,
    ),
    ServiceSpec(
        "oci-registry",
        "propeller.oci_registry.settings:OciRegistrySettings",
        "propeller.oci_registry.api:main",
        Stage.SERVICES,
        (Port("oci-registry", 5000, "OCI_REGISTRY_PORT", 5000),),
        _oci_registry,
        "OCI_REGISTRY_HOST",
        container="local-registry",
    ),
    ServiceSpec(
        "proxy",
        "propeller.proxy.settings:ProxySettings",
        "propeller.proxy.main:main",
        Stage.DELIVERY,
        (Port("proxy", 9191, "PROXY_HTTP_PORT", 9191),),
        _proxy,
        "PROXY_HTTP_HOST",
        client="proxy",
        unsupported=unsupported_variables.PROXY,
    ),
    ServiceSpec(
        "proplet",
        "propeller.proplet.settings:PropletSettings",
        "propeller.proplet.main:main",
        Stage.DEVICES,
        environment=_proplet,
        forked=False,
        unsupported=unsupported_variables.PROPLET,
    ),
)

HTTP_SERVICES = tuple(spec.name for spec in SERVICES if spec.has_http)
"""The names of those with an HTTP API."""

PORTS = {port.name: port for spec in SERVICES for port in spec.ports}

CLIENT_NAMES = tuple(spec.client for spec in SERVICES if spec.client)
"""The services that are clients of the broker, by the names that identity knows them by."""

OPERATOR = "operator"
"""The client that a stack makes for the person who runs it: commands and scripts use its id and key."""


def find_service(name: str) -> ServiceSpec:
    """A service by its name.

    Raises:
        StartError: there is none of that name; the text lists them.
    """
    for spec in SERVICES:
        if spec.name == name:
            return spec
    raise StartError(f"there is no service {name!r}; choose from {', '.join(spec.name for spec in SERVICES)}")


def in_stage(stage: Stage) -> list[ServiceSpec]:
    """The services that start in a stage."""
    return [spec for spec in SERVICES if spec.stage is stage]
