"""ProxySettings of the proxy, with the names of both versions of absmach/propeller."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode, SettingsConfigDict

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.tls import MqttTlsSettings, variable_names
from propeller.oci.allowed import AllowedRegistries, check_registries, parse_registries
from propeller.oci.client import MAX_PROGRAM_BYTES
from propeller.oci.credentials import Credential, Login, Token
from propeller.oci.reference import DefaultRegistry, Registry
from propeller.oci.signers import Signers
from propeller.process.identity_file import IdentityFile
from propeller.process.settings import HttpSettings, Seconds
from propeller.protocol.ids import Id

MAX_CHUNK_BYTES = 5_900_000
"""In bytes: as base64 in JSON it stays below the 8 MB that a message may have."""


def _parse_registry(value: Any) -> Any:
    return DefaultRegistry.parse(value) if isinstance(value, str) else value


def _address(value: str) -> str:
    BrokerAddress.parse(value)
    return value


class ProxySettings(HttpSettings, MqttTlsSettings):
    """Broker, registry, cache and chunks. The client's id is also the MQTT client identifier."""

    model_config = SettingsConfigDict(alias_generator=variable_names("PROXY_"))

    mqtt_address: Annotated[str, AfterValidator(_address)] = Field(
        "tcp://localhost:1883", alias="PROXY_MQTT_ADDRESS"
    )
    mqtt_timeout: Seconds = Field(30.0, alias="PROXY_MQTT_TIMEOUT", gt=0)
    mqtt_qos: int = Field(1, alias="PROXY_MQTT_QOS", ge=0, le=2)
    domain_id: Id = Field(validation_alias=AliasChoices("PROXY_DOMAIN_ID", "PROXY_TENANT_ID"))
    channel_id: Id = Field(alias="PROXY_CHANNEL_ID")
    client_id: Id = Field(validation_alias=AliasChoices("PROXY_CLIENT_ID", "PROXY_ENTITY_ID"))
    client_key: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("PROXY_CLIENT_KEY", "PROXY_API_KEY")
    )
    """Empty for a broker that asks for none: not where an identity service is named."""

    default_registry: Annotated[DefaultRegistry, NoDecode, BeforeValidator(_parse_registry)] = Field(
        alias="PROXY_REGISTRY_URL"
    )
    allowed_registries: Annotated[str, AfterValidator(check_registries)] = Field(
        "", alias="PROXY_ALLOWED_REGISTRIES"
    )
    """Beside the one above."""
    signers: str = Field("", alias="PROXY_SIGNERS")
    """Files with public keys, separated by commas, one of which must have signed a program."""
    authenticate: bool = Field(False, alias="PROXY_AUTHENTICATE")
    registry_username: str | None = Field(None, alias="PROXY_REGISTRY_USERNAME")
    registry_password: SecretStr | None = Field(None, alias="PROXY_REGISTRY_PASSWORD")
    registry_token: SecretStr | None = Field(None, alias="PROXY_REGISTRY_TOKEN")
    registry_timeout: Seconds = Field(30.0, alias="PROXY_REGISTRY_TIMEOUT", gt=0)

    client_requests: float = Field(10.0, alias="PROXY_CLIENT_REQUESTS", gt=0)
    """A second, of one proplet, for longer than a moment."""
    client_bytes: int = Field(16 * 1024**2, alias="PROXY_CLIENT_BYTES", ge=1024)
    """Of programs that one proplet asks for, a second likewise."""

    chunk_size: int = Field(512_000, alias="PROXY_CHUNK_SIZE", ge=1024, le=MAX_CHUNK_BYTES)
    cache: Path = Field(Path(".propeller/proxy"), alias="PROXY_CACHE")
    cache_bytes: int = Field(4 * 1024**3, alias="PROXY_CACHE_BYTES", gt=0)
    max_program_bytes: int = Field(MAX_PROGRAM_BYTES, alias="PROXY_MAX_PROGRAM", gt=0)

    http_host: str = Field("127.0.0.1", alias="PROXY_HTTP_HOST")
    http_port: int = Field(9191, alias="PROXY_HTTP_PORT", ge=0, le=65535)

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment and, for an identity that it leaves out, section ``[proxy]`` of ``config.toml``.

        Raises:
            SettingsError: naming every variable that is missing or wrong.
        """
        return IdentityFile("PROXY", "proxy").load(super().load, given)

    @property
    def registry(self) -> Registry:
        """The registry that ``PROXY_REGISTRY_URL`` names, which the login is for."""
        return self.default_registry.registry

    @property
    def allowed(self) -> AllowedRegistries:
        """Where programs are fetched from."""
        return AllowedRegistries(
            parse_registries(self.allowed_registries) | {self.registry}, "PROXY_ALLOWED_REGISTRIES", "proxy"
        )

    @property
    def believed(self) -> Signers:
        """Whose signatures are believed; nobody need have signed if there are none.

        Raises:
            StartError: a file cannot be read, or is no key.
        """
        return Signers.read(self.signers, "proxy")

    @property
    def registry_credential(self) -> Credential | None:
        """What was given for the registry; a user name with its password wins over a token."""
        if self.registry_username and self.registry_password:
            return Login(self.registry_username, self.registry_password.get_secret_value())
        return Token(self.registry_token.get_secret_value()) if self.registry_token else None
