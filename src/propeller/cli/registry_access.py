"""How a registry of programs is reached from the command line."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from propeller.cli.connection import Target
from propeller.errors import PropellerError, StartError
from propeller.oci.client import RegistryClient
from propeller.oci.credentials import Login, logins_for
from propeller.oci.reference import DefaultRegistry, Reference, Registry

USERNAME, PASSWORD = "ORAS_USER", "ORAS_PASSWORD"
"""Environment variables of a login, as the guide of absmach/propeller sets them for ``oras push``."""

_LOGIN_HELP = (
    "give -u NAME --password-stdin, or log in with `docker login {host}` first (GHCR: your user name in lower case, and a "
    "token with write:packages to push, read:packages to pull)"
)

_UNNAMED = DefaultRegistry(Registry("unnamed.invalid"))
"""Stands for the registry of a reference that names none."""


@dataclass(frozen=True)
class RegistryAccess:
    """What the options of a command say of a registry and its login.

    Attributes:
        target: the stack in whose registry a reference is that names none.
        username: of the login; with ``password_stdin``. ``None``: that of the environment, else the one that Docker stores.
        password_stdin: whether the password comes on standard input.
        plain_http: whether the registry answers HTTP.
    """

    target: Target
    username: str | None = None
    password_stdin: bool = False
    plain_http: bool = False

    @contextlib.asynccontextmanager
    async def open(self, reference: str) -> AsyncIterator[tuple[Reference, RegistryClient]]:
        """A reference as it is meant, and the client of its registry.

        Raises:
            OciError: it is not one.
            StartError: half a login was given, or the reference names no registry and there is no stack.
        """
        parsed, login = self._find(reference)
        async with RegistryClient(logins_for(parsed.registry, login), login_help=_LOGIN_HELP) as client:
            yield parsed, client

    def _find(self, text: str) -> tuple[Reference, Login | None]:
        """A reference, and who asks its registry; one that names no registry is in that of the stack, where experiments look for it."""
        login, parsed = self._login(), Reference.parse(text, _UNNAMED)
        if parsed.registry != _UNNAMED.registry:
            return Reference.parse(f"http://{text}" if self.plain_http and "://" not in text else text), login
        try:
            registry, own = self.target.registry()
        except PropellerError as error:
            raise StartError(
                f"{text} names no registry, and so would be in that of the stack, but {error}; or write it with its registry, as "
                f"localhost:5000/{text}, or docker.io/library/{text} for Docker Hub's"
            ) from None
        return Reference.parse(text, registry), login or (None if own is None else Login(*own))

    def _login(self) -> Login | None:
        """The login given on the command line, else that of the environment."""
        if self.username is None and not self.password_stdin:
            name, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
            return Login(name, password) if name and password else None
        if self.username is None or not self.password_stdin:
            raise StartError(
                "give --username and --password-stdin together: echo $PASSWORD | propeller push … -u NAME --password-stdin"
            )
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise StartError(
                "--password-stdin: no password came on standard input; is the variable set that you echo?"
            )
        return Login(self.username, password)
