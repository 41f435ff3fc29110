"""The environment of each service of a stack: the same variables that its container would be given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from propeller.stack.services import LISTENERS
from propeller.stack.state import Secrets, State

HOST = "127.0.0.1"

_KEPT = (
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

SERVICE_CLIENTS = {"manager": "manager", "coordinator": "fl-coordinator", "proxy": "proxy"}
"""Services that connect to the broker, and the name of the client that each is."""


@dataclass(frozen=True)
class Wiring:
    """What the services of a stack must know of each other."""

    state: State
    ports: Mapping[str, int]
    secrets: Secrets
    log_level: str = "info"
    extra: Mapping[str, Mapping[str, str]] | None = None

    def url(self, name: str) -> str:
        """The address of a service's HTTP API."""
        return f"http://{HOST}:{self.ports[name]}"

    @property
    def broker(self) -> str:
        """The broker's address."""
        return f"tcp://{HOST}:{self.ports['broker']}"

    def of(self, service: str) -> dict[str, str]:
        """The environment of a service (a proplet's is ``of_proplet``)."""
        env = {**self._base(), **getattr(self, f"_{service.replace('-', '_')}")()}
        return {**env, **(self.extra or {}).get(service, {})}

    def of_proplet(self, name: str) -> dict[str, str]:
        """The environment of the proplet that is the client ``name``."""
        chosen = {
            variable: value
            for variable, value in os.environ.items()
            if variable.startswith("PROPLET_TASK_") or variable in {"PROPLET_MAX_TASKS", "PROPLET_CACHE"}
        }
        return {
            **self._base(),
            "PROPLET_CACHE": self._folder("programs"),
            **chosen,
            **self._identity_of("PROPLET", name),
            "PROPLET_MQTT_ADDRESS": self.broker,
            "PROPLET_STATE": str(self.state.service_folder(name)),
            "MODEL_REGISTRY_URL": self.url("model-registry"),
            "DATA_STORE_URL": self.url("data-store"),
            "COORDINATOR_URL": self.url("coordinator"),
            **(self.extra or {}).get("proplet", {}),
        }

    def _base(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # One thread each: the services share the machine with the proplets' programs.
        return {
            **kept,
            "PROPELLER_LOG_LEVEL": self.log_level,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def _identity_of(self, prefix: str, client: str) -> dict[str, str]:
        known = self.secrets.clients[client]
        return {
            f"{prefix}_DOMAIN_ID": self.secrets.domain_id,
            f"{prefix}_CHANNEL_ID": self.secrets.channel_id,
            f"{prefix}_CLIENT_ID": known["id"],
            f"{prefix}_CLIENT_KEY": known["key"],
        }

    def _folder(self, service: str) -> str:
        return str(self.state.service_folder(service))

    def _broker(self) -> dict[str, str]:
        return {
            "BROKER_HOST": HOST,
            "BROKER_PORT": str(self.ports["broker"]),
            "BROKER_NATS_PORT": str(self.ports["nats"]),
            "BROKER_STATE": self._folder("broker"),
            "BROKER_SECRET": self.secrets.broker,
            **(
                {"PROPELLER_NATS_SERVER": os.environ["PROPELLER_NATS_SERVER"]}
                if "PROPELLER_NATS_SERVER" in os.environ
                else {}
            ),
        }

    def _identity(self) -> dict[str, str]:
        listeners = {
            f"IDENTITY_{name.upper()}_PORT": str(self.ports[f"identity-{name}"]) for name in LISTENERS
        }
        return {
            **listeners,
            "IDENTITY_HOST": HOST,
            "IDENTITY_DATABASE": f"{self._folder('identity')}/identity.db",
            "IDENTITY_ADMIN_USERNAME": self.secrets.admin_username,
            "IDENTITY_ADMIN_PASSWORD": self.secrets.admin_password,
            "BROKER_SECRET": self.secrets.broker,
            "BROKER_NATS_URL": f"nats://{HOST}:{self.ports['nats']}",
        }

    def _manager(self) -> dict[str, str]:
        return {
            **self._identity_of("MANAGER", SERVICE_CLIENTS["manager"]),
            "MANAGER_HTTP_HOST": HOST,
            "MANAGER_HTTP_PORT": str(self.ports["manager"]),
            "MANAGER_MQTT_ADDRESS": self.broker,
            "MANAGER_DATABASE": f"{self._folder('manager')}/manager.db",
            "COORDINATOR_URL": self.url("coordinator"),
        }

    def _coordinator(self) -> dict[str, str]:
        identity = self._identity_of("COORDINATOR", SERVICE_CLIENTS["coordinator"])
        return {
            **identity,
            "COORDINATOR_HOST": HOST,
            "COORDINATOR_PORT": str(self.ports["coordinator"]),
            "COORDINATOR_STATE": self._folder("coordinator"),
            "MODEL_REGISTRY_URL": self.url("model-registry"),
            "AGGREGATOR_URL": self.url("aggregator"),
            "MQTT_BROKER": self.broker,
            "MQTT_CLIENT_ID": identity["COORDINATOR_CLIENT_ID"],
            "MQTT_USERNAME": identity["COORDINATOR_CLIENT_ID"],
            "MQTT_PASSWORD": identity["COORDINATOR_CLIENT_KEY"],
        }

    def _aggregator(self) -> dict[str, str]:
        return {"AGGREGATOR_HOST": HOST, "AGGREGATOR_PORT": str(self.ports["aggregator"])}

    def _model_registry(self) -> dict[str, str]:
        return {
            "REGISTRY_HOST": HOST,
            "REGISTRY_PORT": str(self.ports["model-registry"]),
            "MODELS_DIR": self._folder("model-registry"),
        }

    def _data_store(self) -> dict[str, str]:
        proplets = [
            known["id"] for name, known in self.secrets.clients.items() if name.startswith("proplet-")
        ]
        return {
            "DATA_STORE_HOST": HOST,
            "DATA_STORE_PORT": str(self.ports["data-store"]),
            "DATA_DIR": self._folder("data-store"),
            "FL_DATASET_PARTICIPANTS": ",".join(proplets),
        }

    def _oci_registry(self) -> dict[str, str]:
        return {
            "OCI_REGISTRY_HOST": HOST,
            "OCI_REGISTRY_PORT": str(self.ports["oci-registry"]),
            "OCI_REGISTRY_FOLDER": self._folder("oci-registry"),
        }

    def _proxy(self) -> dict[str, str]:
        chosen = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("PROXY_") or name == "DOCKER_CONFIG"
        }
        return {
            "PROXY_REGISTRY_URL": self.url("oci-registry"),
            **chosen,
            **self._identity_of("PROXY", SERVICE_CLIENTS["proxy"]),
            "PROXY_MQTT_ADDRESS": self.broker,
            "PROXY_HTTP_HOST": HOST,
            "PROXY_HTTP_PORT": str(self.ports["proxy"]),
            "PROXY_CACHE": self._folder("proxy"),
        }
