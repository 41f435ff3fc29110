"""Settings of the embedded broker."""

from pathlib import Path

from pydantic import Field, SecretStr

from propeller.mqtt.broker_keys import MIN_SECRET
from propeller.process.settings import ServiceSettings


class Settings(ServiceSettings):
    """What ``propeller serve broker`` reads.

    ``BROKER_HOST`` is where devices connect; every one of them is authenticated. ``BROKER_NATS_HOST`` and
    ``BROKER_NATS_PORT`` are for the identity service alone: this machine's loopback or a private network.
    """

    host: str = Field("127.0.0.1", alias="BROKER_HOST")
    port: int = Field(1883, alias="BROKER_PORT", ge=1, le=65535)
    tls_cert: Path | None = Field(None, alias="BROKER_TLS_CERT")
    """With the key: MQTT over TLS, and only so."""
    tls_key: Path | None = Field(None, alias="BROKER_TLS_KEY")
    tls_client_ca: Path | None = Field(None, alias="BROKER_TLS_CLIENT_CA")
    """Clients must show a certificate that one of these signed (beside their id and key)."""
    nats_host: str = Field("127.0.0.1", alias="BROKER_NATS_HOST")
    nats_port: int = Field(4222, alias="BROKER_NATS_PORT", ge=1, le=65535)
    state: Path = Field(Path(".propeller/broker"), alias="BROKER_STATE")
    max_subscriptions: int = Field(200_000, alias="BROKER_MAX_SUBSCRIPTIONS", ge=1)
    """How many subscriptions of QoS 1 and 2 all sessions may have together, those of clients that are away included."""
    secret: SecretStr = Field(alias="BROKER_SECRET", min_length=MIN_SECRET)
    nats_server: Path | None = Field(None, alias="PROPELLER_NATS_SERVER")
