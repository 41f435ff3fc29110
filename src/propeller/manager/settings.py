"""The manager's settings: the environment of absmach/propeller's manager, old names and new."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.tls import MqttTlsSettings, variable_names
from propeller.process.identity_file import IdentityFile
from propeller.process.settings import HttpSettings, Seconds
from propeller.protocol.ids import Id


def _address(value: str) -> str:
    BrokerAddress.parse(value)
    return value


class ManagerSettings(HttpSettings, MqttTlsSettings):
    """One field, one variable; where there are two names, the first is the guide's and the second the later one."""

    model_config = SettingsConfigDict(alias_generator=variable_names("MANAGER_"))

    http_host: str = Field("localhost", alias="MANAGER_HTTP_HOST")
    http_port: int = Field(7070, alias="MANAGER_HTTP_PORT", ge=0, le=65535)
    http_cert: Path | None = Field(None, alias="MANAGER_HTTP_SERVER_CERT")
    """With the key: HTTPS instead of HTTP."""
    http_key: Path | None = Field(None, alias="MANAGER_HTTP_SERVER_KEY")
    instance_id: str = Field("", alias="MANAGER_INSTANCE_ID")

    mqtt_address: Annotated[str, AfterValidator(_address)] = Field(
        "tcp://localhost:1883", alias="MANAGER_MQTT_ADDRESS"
    )
    mqtt_qos: int = Field(1, alias="MANAGER_MQTT_QOS", ge=0, le=2)
    """Of starts and stops. 1 and not 2 as in S: every receiver knows a message by its id, so 2 only costs time."""
    mqtt_timeout_s: Seconds = Field(5.0, alias="MANAGER_MQTT_TIMEOUT", gt=0)
    """How long a request waits for the broker before it is refused as unavailable."""
    domain_id: Id = Field(validation_alias=AliasChoices("MANAGER_DOMAIN_ID", "MANAGER_TENANT_ID"))
    channel_id: Id = Field(alias="MANAGER_CHANNEL_ID")
    client_id: Id = Field(validation_alias=AliasChoices("MANAGER_CLIENT_ID", "MANAGER_ENTITY_ID"))
    client_key: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("MANAGER_CLIENT_KEY", "MANAGER_API_KEY")
    )
    """Empty for a broker that asks for none: not where an identity service is named."""

    compat: Literal["identity", "any"] = Field("identity", alias="MANAGER_COMPAT")
    """Who is believed on the topics that proplets share: those that identity has marked ``compat`` (without
    PROPELLER_IDENTITY_URL nobody), or anyone, for a broker that asks nobody who they are."""

    coordinator_url: str = Field(
        "", validation_alias=AliasChoices("COORDINATOR_URL", "MANAGER_COORDINATOR_URL")
    )
    """Empty: federated learning is off."""

    database: str = Field("./manager.db", alias="MANAGER_DATABASE")
    """A SQLite file or a database URL."""
    liveliness_interval_s: Seconds = Field(10.0, alias="MANAGER_LIVELINESS_INTERVAL", gt=0)
    """Between heartbeats of a proplet that does not report its own interval; it counts as lost after three missed ones."""
    metrics_keep: Annotated[int, Field(ge=1)] = Field(1000, alias="MANAGER_METRICS_KEEP")
    """Newest metrics kept of each proplet and of each task."""
    tasks_keep: Annotated[int, Field(ge=0)] = Field(10_000, alias="MANAGER_TASKS_KEEP")
    """Newest ended tasks kept; older ones are deleted, but not those of rounds whose deadline has not passed."""
    max_message_bytes: int = Field(8_000_000, alias="MANAGER_MAX_MESSAGE_BYTES", ge=10_000)
    """Largest start message; S proplets refuse packets above 10 MiB."""

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment and, for an identity that it leaves out, section ``[manager]`` of ``config.toml``.

        Raises:
            SettingsError: naming every variable that is missing or wrong.
        """
        return IdentityFile("MANAGER", "manager").load(super().load, given)
