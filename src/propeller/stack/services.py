"""Every service, described once: what runs it, where it listens, when it starts, and what a stack tells it.

``propeller up``, ``serve``, ``status``, ``logs``, the doctor, the fork server and the tests of deploy/compose.yaml read this. A new
service is a new ``ServiceSpec`` here. Nothing of a service is imported before it is asked for.
"""

import contextlib
import os
from pathlib import Path

from propeller.errors import StartError
from propeller.stack import unread_variables
from propeller.stack.config import HOST, StackConfig
from propeller.stack.service_spec import Port, ServiceSpec, Stage, host_variables, inherited
from propeller.wasm.runtimes import runtimes_folder

IDENTITY_LISTENERS = ("users", "domains", "channels", "clients")
"""Identity has a port for each."""


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
        **inherited("BROKER_MAX_*", "PROPELLER_NATS_SERVER"),
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
        **inherited(
            "IDENTITY_KEYS_*",
            "BROKER_CLIENT_*",
            "BROKER_SESSION_EXPIRY",
            "BROKER_STORED_BYTES",
        ),
        **host_variables(stack),
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
        **inherited("MANAGER_MAX_*", "MANAGER_*_KEEP"),
    }


def _coordinator(stack: StackConfig, process: str) -> dict[str, str]:
    client = stack.secrets.clients["fl-coordinator"]
    return {
        "COORDINATOR_REGISTRY_URL": stack.url("oci-registry"),
        **{  # those of the proxy, as it runs the programs that devices run
            name.replace("PROXY", "COORDINATOR", 1): value
            for name, value in inherited("PROXY_REGISTRY_*").items()
        },
        **_registries(stack, "COORDINATOR"),
        **_signers("COORDINATOR"),
        "COORDINATOR_PROGRAM_CACHE": _programs(stack),
        **_runtimes(),
        **_native_evaluations(stack),
        **inherited(
            "COORDINATOR_CACHE_BYTES",
            "COORDINATOR_KEEP_*",
            "COORDINATOR_MAX_*",
            "COORDINATOR_NATIVE_*",
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
        **inherited("AGGREGATOR_*", "DOCKER_CONFIG"),
        **_registries(stack, "AGGREGATOR"),
        **_signers("AGGREGATOR"),
        "AGGREGATOR_CACHE": stack.data(process),
    }


def _model_registry(stack: StackConfig, process: str) -> dict[str, str]:
    return {"MODELS_DIR": stack.data(process), **inherited("REGISTRY_*_BYTES", "REGISTRY_DEVICE_MODELS")}


def _data_store(stack: StackConfig, process: str) -> dict[str, str]:
    proplets = [known["id"] for name, known in stack.secrets.clients.items() if name.startswith("proplet-")]
    return {
        "DATA_DIR": stack.data(process),
        "FL_DATASET_PARTICIPANTS": ",".join(proplets),
        **inherited("DATA_STORE_MAX_*"),
    }


def _oci_registry(stack: StackConfig, process: str) -> dict[str, str]:
    return {"OCI_REGISTRY_FOLDER": stack.data(process), **inherited("OCI_REGISTRY_MAX_*")}


def _proxy(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "PROXY_REGISTRY_URL": stack.url("oci-registry"),
        **inherited("PROXY_*", "DOCKER_CONFIG"),
        **_registries(stack, "PROXY"),
        "PROXY_MQTT_ADDRESS": stack.broker,
        "PROXY_CACHE": stack.data(process),
    }


def _own_repositories(stack: StackConfig) -> list[str]:
    """Patterns of the repositories of the stack's own registry."""
    hosts = dict.fromkeys((HOST, "localhost", stack.outside(HOST)))
    return [f"{host}:{stack.ports['oci-registry']}/*" for host in hosts]


def _native_evaluations(stack: StackConfig) -> dict[str, str]:
    """Has the coordinator evaluate the native programs that proplets here run, unless a policy says whose these are: it has no policy."""
    if stack.native_python is None or os.environ.get("PROPLET_POLICY"):
        return {}
    return {
        "COORDINATOR_NATIVE_PYTHON": str(stack.native_python),
        "COORDINATOR_NATIVE_REPOSITORIES": ",".join(_own_repositories(stack)),
    }


def _native(stack: StackConfig) -> dict[str, str]:
    """Has the proplets here run native programs of the stack's own registry, or those that the policy of the environment names."""
    if stack.native_python is None:
        return {}
    from propeller.proplet.policy import NATIVE_POLICY, write_native_policy

    policy = os.environ.get("PROPLET_POLICY")
    if not policy:
        policy = str(stack.folder.folder / NATIVE_POLICY)
        write_native_policy(Path(policy), _own_repositories(stack), "propeller up --native-python")
    return {"PROPLET_NATIVE_PYTHON": str(stack.native_python), "PROPLET_POLICY": policy}


def _proplet(stack: StackConfig, process: str) -> dict[str, str]:
    return {
        "PROPLET_CACHE": _programs(stack),
        **_runtimes(),
        **inherited(
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
        unsupported=unread_variables.MANAGER,
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
        unsupported=unread_variables.PROXY,
    ),
    ServiceSpec(
        "proplet",
        "propeller.proplet.settings:PropletSettings",
        "propeller.proplet.main:main",
        Stage.DEVICES,
        environment=_proplet,
        forked=False,
        unsupported=unread_variables.PROPLET,
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
