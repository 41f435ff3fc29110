"""IdentitySettings of the identity service."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.broker_keys import MIN_SECRET
from propeller.process.settings import ListenSettings, Seconds
from propeller.protocol.join_tokens import is_address

MIN_PASSWORD = 8
"""The shortest password of a user, in characters (the guide's admin has 8)."""


class IdentitySettings(ListenSettings):
    """What ``propeller serve identity`` reads.

    The API asks for a user's token whatever ``PROPELLER_AUTH`` says: who may connect is not for anyone to change.
    """

    host: str = Field("127.0.0.1", alias="IDENTITY_HOST")
    users_port: int = Field(9002, alias="IDENTITY_USERS_PORT")
    domains_port: int = Field(9003, alias="IDENTITY_DOMAINS_PORT")
    channels_port: int = Field(9005, alias="IDENTITY_CHANNELS_PORT")
    clients_port: int = Field(9006, alias="IDENTITY_CLIENTS_PORT")
    database: str = Field(".propeller/identity/identity.db", alias="IDENTITY_DATABASE")
    admin_username: str = Field("admin", alias="IDENTITY_ADMIN_USERNAME", min_length=1, max_length=128)
    admin_password: SecretStr | None = Field(None, alias="IDENTITY_ADMIN_PASSWORD", min_length=MIN_PASSWORD)
    access_token_s: Seconds = Field(3600.0, alias="IDENTITY_ACCESS_TOKEN_DURATION", gt=0)
    refresh_token_s: Seconds = Field(86400.0, alias="IDENTITY_REFRESH_TOKEN_DURATION", gt=0)
    jwt_secret: SecretStr | None = Field(None, alias="IDENTITY_JWT_SECRET", min_length=MIN_SECRET)
    keys_readable: bool = Field(False, alias="IDENTITY_KEYS_READABLE")
    """Whether admins may read clients' keys again; off, they are shown once and those that were kept are forgotten."""
    keys_secret: SecretStr | None = Field(None, alias="IDENTITY_KEYS_SECRET", min_length=MIN_SECRET)
    """By which kept keys are encrypted in the database."""
    broker_secret: SecretStr = Field(alias="BROKER_SECRET", min_length=MIN_SECRET)
    broker_url: str = Field("nats://127.0.0.1:4222", alias="BROKER_NATS_URL")
    session_expiry_s: Seconds = Field(86400.0, alias="BROKER_SESSION_EXPIRY", gt=0)
    """A session on the broker ends when its client has been away for so long; the client then subscribes again."""
    client_messages: float = Field(500.0, alias="BROKER_CLIENT_MESSAGES", gt=0)
    """Messages a second that a proplet or device may publish for longer than ten seconds before it is muted."""
    client_bytes: int = Field(2 * 1024**2, alias="BROKER_CLIENT_BYTES", ge=1)
    """Bytes a second likewise, for longer than a minute."""
    client_connections: int = Field(4, alias="BROKER_CLIENT_CONNECTIONS", ge=1)
    """Connections that it may have at a time, and sessions likewise."""
    client_subscriptions: int = Field(64, alias="BROKER_CLIENT_SUBSCRIPTIONS", ge=1)
    """Subscriptions that it may have on all its connections."""
    stored_bytes: int = Field(4 * 1024**3, alias="BROKER_STORED_BYTES", ge=1024**2)
    """Of messages that wait for sessions, on the broker's disk; the oldest make room."""
    join_url: str | None = Field(None, alias="IDENTITY_JOIN_URL")
    """Of this service, as devices reach it: what a join token says. The next five are what it then tells them."""
    join_broker: str | None = Field(None, alias="IDENTITY_JOIN_BROKER")
    join_coordinator_url: str | None = Field(None, alias="IDENTITY_JOIN_COORDINATOR_URL")
    join_model_registry_url: str | None = Field(None, alias="IDENTITY_JOIN_MODEL_REGISTRY_URL")
    join_data_store_url: str | None = Field(None, alias="IDENTITY_JOIN_DATA_STORE_URL")
    join_ca_cert: Path | None = Field(None, alias="IDENTITY_JOIN_CA_CERT")
    """The certificate (PEM) of the authority that signed those of all these; without it they are believed as systems believe any."""

    @field_validator("join_url", "join_coordinator_url", "join_model_registry_url", "join_data_store_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not is_address(value):
            raise ValueError(
                f"{value!r} is not the address of a service; write it as https://fleet.example:9002"
            )
        return None if value is None else value.rstrip("/")

    @model_validator(mode="after")
    def _keeps_no_key_in_plain(self) -> Self:
        if self.keys_readable and self.keys_secret is None:
            raise ValueError(
                "IDENTITY_KEYS_READABLE needs IDENTITY_KEYS_SECRET, by which keys are encrypted in the database: 16 characters or more, "
                "as 'openssl rand -hex 32' makes them"
            )
        return self

    @field_validator("join_broker")
    @classmethod
    def _is_a_broker(cls, value: str | None) -> str | None:
        if value is not None:
            BrokerAddress.parse(value)
        return value
