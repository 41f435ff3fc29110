"""The coordinator's settings, from the environment."""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.problems import SettingNames
from propeller.mqtt.session import Credentials
from propeller.mqtt.tls import MqttTlsSettings, variable_names
from propeller.process.identity_file import missing_identity_variables
from propeller.process.settings import HttpSettings, Seconds
from propeller.program_host.settings import Registries, RegistryUrl
from propeller.protocol.ids import Id
from propeller.protocol.topics import Channel
from propeller.web.limits import MAX_BODY

NO_BROKER = "off"

MIB, GIB = 1024**2, 1024**3


class CoordinatorSettings(HttpSettings, MqttTlsSettings):
    """Each field is one environment variable; the names of absmach/propeller and of later absmach/propeller (H) are accepted."""

    model_config = SettingsConfigDict(alias_generator=variable_names(""))

    host: str = Field("127.0.0.1", alias="COORDINATOR_HOST")
    port: int = Field(8080, alias="COORDINATOR_PORT")
    state: Path = Field(Path("coordinator"), alias="COORDINATOR_STATE")
    database: str | None = Field(None, alias="COORDINATOR_DATABASE")
    blobs: str | None = Field(None, alias="COORDINATOR_BLOBS")
    model_registry_url: str = Field(alias="MODEL_REGISTRY_URL")
    aggregator_url: str = Field(alias="AGGREGATOR_URL")
    max_bytes: int = Field(MAX_BODY, alias="COORDINATOR_MAX_BYTES", gt=0)
    """The largest body that is in memory as a whole: updates in JSON and CBOR, and everything else."""
    max_update_bytes: int = Field(4 * GIB, alias="COORDINATOR_MAX_UPDATE_BYTES", gt=0)
    """The largest update in safetensors."""
    keep_updates: bool = Field(default=False, alias="COORDINATOR_KEEP_UPDATES")
    keep_failed_s: Seconds = Field(7 * 86400.0, alias="COORDINATOR_KEEP_FAILED")
    """How long the updates of a failed round stay, so that it can be retried."""
    keep_events_s: Seconds = Field(7 * 86400.0, alias="COORDINATOR_KEEP_EVENTS")
    """How long the events of an experiment stay after its end; its rounds and their metrics stay for ever."""
    max_experiments: int = Field(8, alias="COORDINATOR_MAX_EXPERIMENTS", ge=1)
    """How many experiments run at once; the others are queued. One that is paused does not count."""

    data_store_url: str | None = Field(None, alias="DATA_STORE_URL")
    """Where data sets are that the coordinator itself evaluates on."""
    cache: Path | None = Field(None, alias="COORDINATOR_CACHE")
    cache_bytes: int = Field(GIB, alias="COORDINATOR_CACHE_BYTES", ge=MIB)
    program_cache: Path | None = Field(None, alias="COORDINATOR_PROGRAM_CACHE")
    runtimes: Path | None = Field(None, alias="PROPELLER_RUNTIMES")
    registry_url: RegistryUrl = Field("docker.io", alias="COORDINATOR_REGISTRY_URL")
    allowed_registries: Registries = Field("", alias="COORDINATOR_ALLOWED_REGISTRIES")
    signers: str = Field("", alias="COORDINATOR_SIGNERS")
    """Files with public keys, separated by commas, one of which must have signed a program."""
    registry_username: str | None = Field(None, alias="COORDINATOR_REGISTRY_USERNAME")
    registry_password: SecretStr | None = Field(None, alias="COORDINATOR_REGISTRY_PASSWORD")
    registry_token: SecretStr | None = Field(None, alias="COORDINATOR_REGISTRY_TOKEN")
    program_wall_time: Seconds = Field(300.0, alias="COORDINATOR_PROGRAM_WALL_TIME", gt=0)
    program_memory: int = Field(512 * MIB, alias="COORDINATOR_PROGRAM_MEMORY", ge=MIB)
    program_tensor_bytes: int = Field(512 * MIB, alias="COORDINATOR_PROGRAM_TENSOR_BYTES", ge=1024)

    native_repositories: str = Field("", alias="COORDINATOR_NATIVE_REPOSITORIES")
    """Patterns of repositories, separated by commas, whose native programs run."""
    native_python: Path | None = Field(None, alias="COORDINATOR_NATIVE_PYTHON", validate_default=True)
    """The interpreter of native programs."""

    broker: str = Field("tcp://localhost:1883", alias="MQTT_BROKER")
    """``off`` for a coordinator without MQTT."""
    mqtt_id: str | None = Field(None, validation_alias=AliasChoices("MQTT_CLIENT_ID", "MQTT_ENTITY_ID"))
    mqtt_username: str | None = Field(None, alias="MQTT_USERNAME")
    mqtt_password: str | None = Field(None, alias="MQTT_PASSWORD", repr=False)
    client_id: str | None = Field(
        None, validation_alias=AliasChoices("COORDINATOR_CLIENT_ID", "COORDINATOR_ENTITY_ID")
    )
    client_key: str | None = Field(
        None,
        validation_alias=AliasChoices("COORDINATOR_CLIENT_KEY", "COORDINATOR_API_KEY"),
        validate_default=True,
        repr=False,
    )
    domain_id: Id | None = Field(
        None, validation_alias=AliasChoices("COORDINATOR_DOMAIN_ID", "COORDINATOR_TENANT_ID")
    )
    channel_id: Id | None = Field(None, alias="COORDINATOR_CHANNEL_ID", validate_default=True)

    @field_validator("broker")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value != NO_BROKER:
            BrokerAddress.parse(value)
        return value

    @field_validator("native_python")
    @classmethod
    def _is_there_for_them(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("native_repositories", "").strip(" ,"):
            raise ValueError(
                "COORDINATOR_NATIVE_REPOSITORIES is for native programs: name the interpreter that runs them, or unset that"
            )
        return value

    @field_validator("client_key")
    @classmethod
    def _can_authenticate(cls, value: str | None, info: ValidationInfo) -> str | None:
        asks = info.data.get("auth") == "on" and info.data.get("identity_url")
        if asks and not (value and info.data.get("client_id")):
            raise ValueError(
                "PROPELLER_IDENTITY_URL needs COORDINATOR_CLIENT_ID and COORDINATOR_CLIENT_KEY: what the coordinator "
                "shows to the aggregator and the model registry"
            )
        return value

    @field_validator("channel_id")
    @classmethod
    def _is_whole(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "domain_id" in info.data and (value is None) != (info.data["domain_id"] is None):
            raise ValueError("COORDINATOR_DOMAIN_ID and COORDINATOR_CHANNEL_ID: set both or neither")
        return value

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment.

        Raises:
            SettingsError: naming every variable that is missing or wrong.
        """
        named = given.get("mqtt_username") or os.environ.get("MQTT_USERNAME")
        missing = (
            [] if named else missing_identity_variables("COORDINATOR", given, ("client_id", "client_key"))
        )
        return super().load(missing=missing, **given)

    @property
    def database_place(self) -> str:
        """The database's URL or file."""
        return self.database or str(self.state / "coordinator.db")

    @property
    def blobs_place(self) -> str:
        """The folder or URL of the updates."""
        return self.blobs or str(self.state / "updates")

    @property
    def cache_folder(self) -> Path:
        """The folder of programs that the coordinator runs, and of what they are given."""
        return self.cache or self.state / "programs"

    @property
    def own_folders(self) -> list[Path]:
        """The folders with what is the coordinator's alone."""
        places = [Path(place) for place in (self.database_place, self.blobs_place) if "://" not in place]
        return [self.state, self.cache_folder, *places, *filter(None, [self.program_cache])]

    @property
    def credentials(self) -> tuple[str, str] | None:
        """The coordinator's client id and key, for HTTP calls where authentication is on."""
        if self.auth == "off" or self.client_id is None or self.client_key is None:
            return None
        return self.client_id, self.client_key

    @property
    def broker_address(self) -> BrokerAddress | None:
        """Where the broker is; ``None`` without MQTT."""
        return None if self.broker == NO_BROKER else BrokerAddress.parse(self.broker)

    @property
    def mqtt_credentials(self) -> Credentials:
        """Who the coordinator is to the broker; its client identifier is its client id unless told otherwise."""
        username = self.mqtt_username or self.client_id or ""
        password = self.mqtt_password or self.client_key or ""
        return Credentials(self.mqtt_id or username or "fl-coordinator", username, password)

    @property
    def mqtt_names(self) -> SettingNames:
        """What an operator is told to correct when the broker refuses."""
        own = self.mqtt_username or self.mqtt_password
        client = (
            "MQTT_USERNAME and MQTT_PASSWORD" if own else "COORDINATOR_CLIENT_ID and COORDINATOR_CLIENT_KEY"
        )
        return SettingNames(client, "COORDINATOR_DOMAIN_ID and COORDINATOR_CHANNEL_ID")

    @property
    def channel(self) -> Channel | None:
        """The channel whose round topics are used beside those outside of every channel."""
        if self.domain_id is None or self.channel_id is None:
            return None
        return Channel(self.domain_id, self.channel_id)
