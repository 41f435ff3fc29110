"""Settings from the environment: durations in both dialects, every missing name reported at once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from propeller.errors import PropellerError
from propeller.process.log_file import MAX_BYTES
from propeller.process.logs import Form
from propeller.process.tls import KeyPair, pair

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


class SettingsError(PropellerError):
    """The environment does not hold what a service needs; the text names every variable and the remedy.

    Attributes:
        lines: what is wrong, a variable each.
    """

    def __init__(self, lines: Sequence[str], *, remedy: str = "") -> None:
        self.lines = list(lines)
        text = ["settings to correct in the environment:", *lines, *([remedy] if remedy else [])]
        super().__init__("\n  ".join(text))


def parse_duration(value: Any) -> Any:
    """Read seconds from ``30``, ``"30"``, ``"30s"``, ``"1m30s"`` or ``"500ms"``.

    Go services of absmach/propeller take ``30s`` and its Rust proplet takes ``30``; both are read here.

    Raises:
        ValueError: the text is not a duration.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if text and _PART.sub("", text) == "":
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    raise ValueError(f"{value!r} is not a duration; write seconds (30) or a Go duration (30s, 1m30s, 500ms)")


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(parse_duration)]
"""A duration in seconds, read from either dialect."""


class ServiceSettings(BaseSettings):
    """Base of every service's settings: each field is one environment variable (its alias).

    Unset and empty variables are the same thing, as compose files pass unset ones as empty strings.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, case_sensitive=True)

    @classmethod
    def load(cls, *, missing: Sequence[str] = (), **given: Any) -> Self:
        """Read the environment; keyword arguments, by the fields' names, win over it.

        Args:
            missing: variables that are not set and are needed here, though not everywhere.
            given: fields that are known already.

        Raises:
            SettingsError: naming every variable that is missing or wrong.
        """
        try:
            settings = cls(**{_variable(cls, name): value for name, value in given.items()})
        except ValidationError as error:
            raise _explain(cls, error, missing) from None
        except UnreadableError as error:  # a list or an object that is not JSON
            raise SettingsError([str(error)]) from None
        if missing:
            raise _settings_error(dict.fromkeys(missing, _NOT_SET), [])
        return settings


class LogSettings(ServiceSettings):
    """How long a log file may be, and what lines on standard error look like."""

    max_bytes: int = Field(MAX_BYTES, alias="PROPELLER_LOG_MAX_BYTES", ge=10_000)
    form: Form = Field("auto", alias="PROPELLER_LOG_FORMAT")


def _variable(settings: type[ServiceSettings], name: str) -> str:
    """The variable of a field. Fields are not read by their own names, or ``host`` in an environment would move a service."""
    field = settings.model_fields.get(name)
    alias = None if field is None else field.validation_alias
    choice = alias.choices[0] if isinstance(alias, AliasChoices) else alias
    return choice if isinstance(choice, str) else name


class ListenSettings(ServiceSettings):
    """How an HTTP API is called: by which names, through which proxies, and with which certificate."""

    hosts: str = Field("", alias="PROPELLER_HOSTS")
    """Further names of the service, separated by commas; ``*`` for any."""
    trusted_proxies: str = Field("", alias="PROPELLER_TRUSTED_PROXIES")
    """Addresses and networks, separated by commas, whose ``X-Forwarded-*`` headers are believed."""
    audit_log: Path | None = Field(None, alias="PROPELLER_AUDIT_LOG")
    """Where it is written down who changed what; without it, nowhere."""
    tls_cert: Path | None = Field(None, alias="PROPELLER_TLS_CERT")
    """With the key: HTTPS, and only so."""
    tls_key: Path | None = Field(None, alias="PROPELLER_TLS_KEY")

    @property
    def tls(self) -> KeyPair | None:
        """What the service shows to its callers; ``None`` for HTTP.

        Raises:
            StartError: only one of the two is set.
        """
        return pair(self.tls_cert, self.tls_key, "PROPELLER_TLS_CERT", "PROPELLER_TLS_KEY")


class HttpSettings(ListenSettings):
    """What every service with an HTTP API also reads."""

    auth: Literal["on", "off"] = Field("on", alias="PROPELLER_AUTH")
    """``off``: whoever reaches the service may use it."""
    identity_url: str | None = Field(None, alias="PROPELLER_IDENTITY_URL")
    """Who checks credentials. Without it only the user who runs the service may use it, on loopback."""
    domain: str | None = Field(None, alias="PROPELLER_DOMAIN_ID")
    """The domain whose users and clients may use the service."""
    peer_role: Literal["manager", "coordinator", "proplet"] | None = Field(None, alias="PROPELLER_PEER_ROLE")
    """What callers without credentials are, for the services and devices of absmach/propeller, which send none."""
    insecure: bool = Field(False, alias="PROPELLER_INSECURE")


_NOT_SET = "not set"
_IDENTITY = ("_DOMAIN_ID", "_CHANNEL_ID", "_CLIENT_ID", "_CLIENT_KEY")
PROVISION = (
    "propeller provision makes these ids and keys and writes them into the .env file: "
    "run it, then start this service with them"
)


def _explain(
    settings: type[ServiceSettings], error: ValidationError, missing: Sequence[str]
) -> SettingsError:
    wrong, others = dict.fromkeys(missing, _NOT_SET), []
    for item in error.errors(include_input=False, include_url=False):
        text = _NOT_SET if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
        if item["loc"]:
            wrong[_variable(settings, str(item["loc"][0]))] = (
                text  # a default is located by its field's own name
            )
        else:
            others.append(text)
    return _settings_error(wrong, others)


def _settings_error(wrong: dict[str, str], others: list[str]) -> SettingsError:
    """Each variable with what is wrong with it, then other faults, then where identities come from."""
    identity_is_missing = any(text == _NOT_SET and name.endswith(_IDENTITY) for name, text in wrong.items())
    lines = [f"{name}: {text}" for name, text in wrong.items()] + others
    return SettingsError(lines, remedy=PROVISION if identity_is_missing else "")
