"""The request bodies of the identity API.

Those that machines send (``JoinRequest``, ``VerifyRequest``) may have more fields: a device or service may be newer than identity.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from propeller.identity.settings import MIN_PASSWORD
from propeller.protocol.ids import Id, check_id
from propeller.protocol.strict import MAX_NAMED_PROBLEMS, explain_unknown

_MAX_IDS = 1000
_MAX_METADATA_BYTES = 16 * 1024

_NONCE = re.compile(r"[0-9a-fA-F]{64}")

_CLIENT_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

MAX_DEVICE_NAME = 64
"""Characters of a device's name: the manager shows no more."""

DEFAULT_LIFETIME_S, MAX_LIFETIME_S = 3600.0, 30 * 86400.0
"""How long a join token is good, in seconds: if nobody says, and at most."""


def printable(text: str | None) -> str | None:
    """Refuse control characters and spaces around a name.

    Raises:
        ValueError: there are some.
    """
    if text is not None and (not text.isprintable() or text != text.strip()):
        raise ValueError("must be printable, without spaces around it")
    return text


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value)) > _MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {_MAX_METADATA_BYTES} bytes of JSON")
    return value


def _one_tag(tag: str) -> str:
    if "," in tag:
        raise ValueError("a tag has no comma: give several tags")
    return printable(tag) or ""


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number of seconds")  # noqa: TRY004 - pydantic names the field for this one
    return value


def _device_name(name: str) -> str:
    if len(check_id(name)) > MAX_DEVICE_NAME:
        raise ValueError(f"must be {MAX_DEVICE_NAME} characters at most")
    if _CLIENT_ID.fullmatch(name):
        raise ValueError(
            "has the form of a client's id: where devices are named by either, it would be another one's"
        )
    return name


MAX_TAGS = 64

DeviceTags = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_tag)]],
    Field(max_length=MAX_TAGS),
]
Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(printable)]
DeviceName = Annotated[str, AfterValidator(_device_name)]
Password = Annotated[SecretStr, Field(min_length=MIN_PASSWORD, max_length=256)]
Status = Literal["enabled", "disabled"]
Ids = Annotated[list[Id], Field(min_length=1, max_length=_MAX_IDS)]
Types = Annotated[list[Literal["publish", "subscribe"]], Field(min_length=1, max_length=2)]
BOTH: tuple[Literal["publish", "subscribe"], ...] = ("publish", "subscribe")


class RequestBody(BaseModel):
    """What a person or a script sends: a field that there is not is refused by its name, with the nearest that there is."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields of absmach/propeller's identity service (SuperMQ) that mean nothing here, and are taken."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_fields(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {name for field in cls.model_fields.items() for name in _names_of(*field)}
        unknown = [name for name in value if name not in known and name not in cls.ignored]
        if unknown:
            told = [
                f"{name[:80]}: {explain_unknown(name[:80], known, {})}"
                for name in unknown[:MAX_NAMED_PROBLEMS]
            ]
            raise ValueError("; ".join(told))
        return value


def _names_of(name: str, field: FieldInfo) -> list[str]:
    choices = field.validation_alias
    return [str(one) for one in choices.choices] if isinstance(choices, AliasChoices) else [name]


class LoginRequest(RequestBody):
    """A user name and password, by the names of either generation of clients."""

    ignored = frozenset({"domain_id"})

    username: Name = Field(validation_alias=AliasChoices("username", "identity"))
    password: SecretStr = Field(validation_alias=AliasChoices("password", "secret"), max_length=256)


class NewUser(RequestBody):
    """A new user."""

    username: Name
    password: Password
    role: Literal["admin", "user"] = "user"


class NewPassword(RequestBody):
    """The old password of the caller and the new one."""

    old_secret: SecretStr = Field(max_length=256)
    new_secret: Password


class Membership(RequestBody):
    """What a user is in a domain."""

    role: Literal["admin", "operator", "viewer"]


class NewDomain(RequestBody):
    """A new domain; its route is its unique name in addresses."""

    ignored = frozenset({"alias", "metadata", "permission", "permissions", "status", "tags"})

    name: Name
    route: Id


class NewClientRequest(RequestBody):
    """A new client. The service makes its key and shows it once, in the answer."""

    ignored = frozenset({"domain_id", "parent_group_id"})

    name: Name
    role: str | None = Field(None, max_length=32)
    tags: list[Annotated[str, Field(max_length=128)]] = Field([], max_length=MAX_TAGS)
    metadata: Annotated[dict[str, Any], BeforeValidator(_none_is_empty), AfterValidator(_small)] = {}
    status: Status = "enabled"
    compat: bool | None = None
    credentials: dict[str, Any] | None = None

    @field_validator("credentials")
    @classmethod
    def _refuse_secret(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and value.get("secret"):
            raise ValueError("keys are made by this service: leave secret out, and read it in the answer")
        return value


class ClientChange(RequestBody):
    """What of a client can be changed."""

    compat: bool


class NewDevice(RequestBody):
    """A new device, and how long its join token is good."""

    name: DeviceName
    tags: DeviceTags = []
    lifetime_s: Annotated[float, BeforeValidator(_no_switch)] = Field(
        DEFAULT_LIFETIME_S, gt=0, le=MAX_LIFETIME_S, allow_inf_nan=False
    )
    channel: Name | None = None


class DeviceChange(RequestBody):
    """What of a device can be changed: its name, its tags, or both."""

    name: DeviceName | None = None
    tags: DeviceTags | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.tags is None:
            raise ValueError("give name, tags or both: there is nothing else to change")
        return self


class JoinRequest(BaseModel):
    """The secret of a join token and 32 random bytes that the device made, by which it may ask again; in hexadecimal."""

    secret: SecretStr = Field(max_length=256)
    nonce: SecretStr | None = None

    def secrets(self) -> tuple[bytes, bytes | None]:
        """Both, as bytes."""
        nonce = None if self.nonce is None else bytes.fromhex(self.nonce.get_secret_value())
        return bytes.fromhex(self.secret.get_secret_value()), nonce

    @field_validator("nonce")
    @classmethod
    def _is_a_nonce(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _NONCE.fullmatch(value.get_secret_value()):
            raise ValueError("must be 32 bytes in hexadecimal: 64 digits")
        return value

    @field_validator("secret")
    @classmethod
    def _is_hexadecimal(cls, value: SecretStr) -> SecretStr:
        try:
            bytes.fromhex(value.get_secret_value())
        except ValueError:
            raise ValueError("must be the secret of a join token, in hexadecimal") from None
        return value


class NewChannel(RequestBody):
    """A new channel."""

    ignored = frozenset({"domain_id", "metadata", "parent_group_id", "route", "tags"})

    name: Name
    status: Status = "enabled"


class ConnectionsRequest(RequestBody):
    """Which clients to connect to which channels, and for what."""

    client_ids: Ids
    channel_ids: Ids
    types: Types = list(BOTH)


class ChannelConnectionsRequest(RequestBody):
    """Which clients to connect to the channel of the path, and for what."""

    client_ids: Ids
    types: Types = list(BOTH)


class VerifyRequest(BaseModel):
    """An ``Authorization`` header that a service was sent, and the domain of that service."""

    authorization: str = Field(max_length=8192)
    domain: Id | None = None
