"""The proplet's settings: the names of absmach/propeller, older and newer, and the project's own."""

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.tls import MqttTlsSettings, variable_names
from propeller.process.identity_file import IdentityFile
from propeller.process.settings import Seconds
from propeller.protocol.ids import Id
from propeller.wasm.owners_limits import NATIVE_MEMORY_BYTES
from propeller.wasm.program_run import MIB, Limits


def _aliases(*names: str) -> AliasChoices:
    return AliasChoices(*(f"PROPLET_{name}" for name in names))


class PropletSettings(MqttTlsSettings):
    """What a proplet reads from its environment. The client's id is also the MQTT client identifier."""

    model_config = SettingsConfigDict(alias_generator=variable_names("PROPLET_"))

    domain_id: Id = Field(validation_alias=_aliases("DOMAIN_ID", "TENANT_ID"))
    channel_id: Id = Field(validation_alias=_aliases("CHANNEL_ID"))
    client_id: Id = Field(validation_alias=_aliases("CLIENT_ID", "ENTITY_ID"))
    client_key: str = Field(validation_alias=_aliases("CLIENT_KEY", "API_KEY"), repr=False)
    instance_id: str = Field("", alias="PROPLET_INSTANCE_ID")
    """What the device calls itself, which counts where the manager asks no identity; not an identity."""

    mqtt_address: str = Field("tcp://localhost:1883", alias="PROPLET_MQTT_ADDRESS")
    mqtt_qos: Literal[0, 1, 2] = Field(1, alias="PROPLET_MQTT_QOS")
    mqtt_timeout: Seconds = Field(30.0, alias="PROPLET_MQTT_TIMEOUT", gt=0)
    mqtt_keep_alive: Seconds = Field(30.0, alias="PROPLET_MQTT_KEEP_ALIVE", ge=1, le=65535)
    compat: bool = Field(False, alias="PROPLET_COMPAT")
    """Speak on the topics that absmach/propeller's proplets share: for its managers and proxies. At our identity service the
    client must then be marked ``compat``."""
    mqtt_max_packet: int = Field(10 * MIB, alias="PROPLET_MQTT_MAX_PACKET_SIZE", ge=1024)

    liveliness_interval: Seconds = Field(10.0, alias="PROPLET_LIVELINESS_INTERVAL", gt=0)
    metrics_interval: Seconds = Field(10.0, alias="PROPLET_METRICS_INTERVAL", ge=0)
    monitoring: bool = Field(True, alias="PROPLET_ENABLE_MONITORING")
    namespace: str = Field("default", alias="PROPLET_MANAGER_K8S_NAMESPACE")
    description: str | None = Field(None, alias="PROPLET_DESCRIPTION")
    tags: str = Field("", alias="PROPLET_TAGS")
    location: str | None = Field(None, alias="PROPLET_LOCATION")
    collect_system_info: bool = Field(True, alias="PROPLET_COLLECT_SYSTEM_INFO")

    model_registry_url: str | None = Field(None, alias="MODEL_REGISTRY_URL")
    data_store_url: str | None = Field(None, alias="DATA_STORE_URL")
    coordinator_url: str | None = Field(
        None, validation_alias=AliasChoices("COORDINATOR_URL", "MANAGER_COORDINATOR_URL")
    )
    data: Path | None = Field(None, alias="PROPLET_DATA")
    """The device's own data, a file or a folder: programs are given it, no service is, and no data store is asked."""
    data_label: str | None = Field(None, alias="PROPLET_DATA_LABEL")
    """Of a table, the column with labels."""
    joined: Path | None = Field(None, alias="PROPLET_JOINED")
    """Where ``propeller join``, which sets this, keeps the device's identity; ``None`` for other proplets."""
    auth: Literal["on", "off"] = Field("on", alias="PROPELLER_AUTH")
    """``off``: do not send the client's id and key to the services above."""

    state: Path | None = Field(None, alias="PROPLET_STATE")
    cache: Path | None = Field(None, alias="PROPLET_CACHE")
    cache_bytes: int = Field(1024 * MIB, alias="PROPLET_CACHE_BYTES", ge=MIB)
    runtimes: Path | None = Field(None, alias="PROPELLER_RUNTIMES")
    state_bytes: int = Field(1024 * MIB, alias="PROPLET_STATE_BYTES", ge=MIB)
    state_days: float = Field(30.0, alias="PROPLET_STATE_DAYS", gt=0, le=36500)
    max_tasks: int = Field(os.cpu_count() or 1, alias="PROPLET_MAX_TASKS", ge=1, le=1024)
    task_wall_time: Seconds = Field(300.0, alias="PROPLET_TASK_WALL_TIME", gt=0)
    task_memory: int = Field(512 * MIB, alias="PROPLET_TASK_MEMORY", ge=MIB)
    task_fuel: int | None = Field(None, alias="PROPLET_TASK_FUEL", ge=1)
    task_table_elements: int = Field(1_000_000, alias="PROPLET_TASK_TABLE_ELEMENTS", ge=1)
    task_stdout_bytes: int = Field(8 * MIB, alias="PROPLET_TASK_STDOUT_BYTES", ge=1024)
    task_stderr_bytes: int = Field(MIB, alias="PROPLET_TASK_STDERR_BYTES", ge=1024)
    task_out_bytes: int = Field(256 * MIB, alias="PROPLET_TASK_OUT_BYTES", ge=1024)
    task_out_files: int = Field(64, alias="PROPLET_TASK_OUT_FILES", ge=1)
    task_state_bytes: int = Field(64 * MIB, alias="PROPLET_TASK_STATE_BYTES", ge=0)
    task_state_files: int = Field(64, alias="PROPLET_TASK_STATE_FILES", ge=1)
    task_module_bytes: int = Field(64 * MIB, alias="PROPLET_TASK_MODULE_BYTES", ge=1024)
    task_tensor_bytes: int = Field(512 * MIB, alias="PROPLET_TASK_TENSOR_BYTES", ge=1024)
    task_tensor_handles: int = Field(100_000, alias="PROPLET_TASK_TENSOR_HANDLES", ge=16)
    task_threads: int = Field(64, alias="PROPLET_TASK_THREADS", ge=4)
    task_descriptors: int = Field(256, alias="PROPLET_TASK_DESCRIPTORS", ge=32, le=65536)
    task_compile_time: Seconds = Field(60.0, alias="PROPLET_TASK_COMPILE_TIME", gt=0)
    task_compile_memory: int = Field(2048 * MIB, alias="PROPLET_TASK_COMPILE_MEMORY", ge=64 * MIB)
    max_memory: int | None = Field(None, alias="PROPLET_MAX_MEMORY")
    """This and the next three: what all tasks may take together; the largest task must fit."""
    max_disk: int | None = Field(None, alias="PROPLET_MAX_DISK")
    max_threads: int | None = Field(None, alias="PROPLET_MAX_THREADS")
    max_descriptors: int | None = Field(None, alias="PROPLET_MAX_DESCRIPTORS")
    max_processors: int | None = Field(None, alias="PROPLET_MAX_PROCESSORS", ge=1)
    fetch_timeout: Seconds = Field(60.0, alias="PROPLET_FETCH_TIMEOUT", gt=0)
    policy: Path | None = Field(None, alias="PROPLET_POLICY")
    """What the device's owner lets it run."""
    external_runtime: str | None = Field(None, alias="PROPLET_EXTERNAL_WASM_RUNTIME")
    native_python: Path | None = Field(None, alias="PROPLET_NATIVE_PYTHON")
    """The interpreter of native programs, which run where it is set and the policy names whose."""

    @field_validator("mqtt_qos", mode="before")
    @classmethod
    def _parse_qos(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.strip().isdigit() else value

    @field_validator("mqtt_address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        BrokerAddress.parse(value)
        return value

    @field_validator("task_state_bytes")
    @classmethod
    def _fits_twice(cls, value: int, info: ValidationInfo) -> int:
        room = info.data.get("state_bytes")
        if room is not None and 2 * value > room:
            raise ValueError(
                f"twice this is more than PROPLET_STATE_BYTES ({room}): of a state there are two, that of the last round and the one before"
            )
        return value

    @field_validator("external_runtime")
    @classmethod
    def _counts_no_fuel(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("task_fuel") is not None:
            raise ValueError("an external runtime counts no instructions: unset PROPLET_TASK_FUEL, or this")
        return value

    @field_validator("native_python")
    @classmethod
    def _in_the_built_in_sandbox(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value and info.data.get("external_runtime"):
            raise ValueError(
                "native programs run in the built-in sandbox alone: unset PROPLET_EXTERNAL_WASM_RUNTIME, or this"
            )
        return value

    @model_validator(mode="after")
    def _largest_task_fits(self) -> Self:
        for name, most in self.largest_task.items():
            alias = type(self).model_fields[f"max_{name}"].alias
            given = getattr(self, f"max_{name}")
            if given is not None and given < most:
                raise ValueError(
                    f"{alias}: {given} is less than one task may take, {most} ({_TAKEN[name]}): raise it, or lower those"
                )
        return self

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment and, for an identity that it leaves out, the configuration file.

        That file is ``PROPLET_CONFIG_FILE`` (``config.toml``), section ``PROPLET_CONFIG_SECTION`` (``proplet``).

        Raises:
            SettingsError: naming every variable that is missing or wrong.
        """
        file = Path(os.environ.get("PROPLET_CONFIG_FILE") or "config.toml")
        section = os.environ.get("PROPLET_CONFIG_SECTION") or "proplet"
        return IdentityFile("PROPLET", section, file).load(super().load, given)

    @property
    def broker(self) -> BrokerAddress:
        """Where the broker is."""
        return BrokerAddress.parse(self.mqtt_address)

    @property
    def folder(self) -> Path:
        """Where unsent results are, and programs unless ``cache`` is set; never shared by two proplets."""
        return self.state or Path(".propeller") / f"proplet-{self.client_id}"

    @property
    def largest_task(self) -> dict[str, int]:
        """What a task may take, by what ``max_memory`` and its neighbours bound."""
        limits = self.limits
        memory = limits.process_bytes(host_tensors=True)
        if self.external_runtime:
            memory = limits.memory_bytes + limits.compile_memory_bytes
        return {
            "memory": memory,
            "disk": limits.out_bytes + limits.state_bytes,
            "threads": limits.threads,
            "descriptors": limits.descriptors,
        }

    @property
    def limits(self) -> Limits:
        """What one task may use."""
        given = {limit: getattr(self, field) for limit, field in _LIMIT_FIELDS.items()}
        if self.native_python is not None and "task_memory" not in self.model_fields_set:
            given["memory_bytes"] = NATIVE_MEMORY_BYTES
        return Limits(**given)


_TAKEN = {
    "memory": "PROPLET_TASK_MEMORY, 192 MiB for the runtime and twice PROPLET_TASK_TENSOR_BYTES; with an external runtime "
    "PROPLET_TASK_MEMORY and PROPLET_TASK_COMPILE_MEMORY",
    "disk": "PROPLET_TASK_OUT_BYTES and PROPLET_TASK_STATE_BYTES",
    "threads": "PROPLET_TASK_THREADS",
    "descriptors": "PROPLET_TASK_DESCRIPTORS",
}

_LIMIT_FIELDS = {
    "wall_time_s": "task_wall_time",
    "memory_bytes": "task_memory",
    "compile_s": "task_compile_time",
    "compile_memory_bytes": "task_compile_memory",
    **{
        name: f"task_{name}"
        for name in (
            "fuel",
            "stdout_bytes",
            "stderr_bytes",
            "out_bytes",
            "out_files",
            "state_bytes",
            "state_files",
            "module_bytes",
            "table_elements",
            "tensor_bytes",
            "tensor_handles",
            "threads",
            "descriptors",
        )
    },
}

LIMIT_SETTINGS = {
    limit: str(PropletSettings.model_fields[field].alias) for limit, field in _LIMIT_FIELDS.items()
}
"""The setting of each limit of a task."""
