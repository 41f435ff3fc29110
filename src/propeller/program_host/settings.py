"""What the settings of services that run programs have in common."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

if TYPE_CHECKING:
    from propeller.oci.allowed import AllowedRegistries
    from propeller.oci.credentials import Credential


def _check_registry(value: Any) -> Any:
    from propeller.oci.reference import DefaultRegistry

    if isinstance(value, str):
        DefaultRegistry.parse(value)
    return value


def _check_registries(value: str) -> str:
    from propeller.oci.allowed import check_registries

    return check_registries(value)


RegistryUrl = Annotated[str, NoDecode, BeforeValidator(_check_registry)]
"""The registry of references that name none, and the one that the login is for; a namespace may follow."""

Registries = Annotated[str, AfterValidator(_check_registries)]
"""Registries that programs are fetched from beside that one, separated by commas."""


def make_allowed(service: str, registry_url: str, others: str) -> "AllowedRegistries":
    """The registries of a service's ``RegistryUrl`` and ``Registries``."""
    # Here, as a service that runs no program has no use for a registry's client.
    from propeller.oci.allowed import AllowedRegistries, parse_registries
    from propeller.oci.reference import DefaultRegistry

    named = parse_registries(others) | {DefaultRegistry.parse(registry_url).registry}
    return AllowedRegistries(named, f"{service.upper()}_ALLOWED_REGISTRIES", service)


def make_credential(
    username: str | None, password: SecretStr | None, token: SecretStr | None
) -> "Credential | None":
    """The login for that registry, if there is one; name and password take precedence."""
    from propeller.oci.credentials import Login, Token

    if username and password:
        return Login(username, password.get_secret_value())
    return Token(token.get_secret_value()) if token else None
