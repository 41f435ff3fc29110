"""Which stack a command is about: one on this machine, or one elsewhere."""

import getpass
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.cli.options import DEFAULT_STATE
from propeller.errors import StartError
from propeller.oci.reference import DefaultRegistry
from propeller.protocol.strict import nearest_names
from propeller.sdk import AsyncPropeller, Propeller
from propeller.sdk.addresses import (
    OPERATED,
    PORTS,
    REGISTRY,
    check_url,
    operator_of_stack,
    read_stack,
    registry_of_host,
    registry_of_stack,
    urls_of_host,
)
from propeller.sdk.kept_login import KeptLogin

PASSWORD_VARIABLE = "PROPELLER_PASSWORD"  # noqa: S105 - its name

URL_VARIABLE = "PROPELLER_URL"
"""What ``--url`` is given, separated by spaces, for commands without it that name no state folder either."""

REGISTRY_VARIABLE = "PROXY_REGISTRY_URL"
"""Where references without a registry are, as the proxy reads it."""

_OTHER_PORTS = "for other ports give the address of each, as --url manager=http://fleet.example:7070"


@dataclass(frozen=True)
class Target:
    """A stack as the command line names it.

    Attributes:
        state: the state folder of one on this machine.
        urls: the host of one elsewhere, or addresses of its services as ``NAME=URL``, which then count.
        user: who calls there.
        ca: the certificate of its authority, if it has one of its own.
    """

    state: Path = DEFAULT_STATE
    urls: tuple[str, ...] = ()
    user: str | None = None
    ca: Path | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is one elsewhere."""
        return bool(self._given_urls()) or self._kept_login(()) is not None

    @property
    def is_named(self) -> bool:
        """Whether it is said where that is."""
        return bool(self._given_urls())

    def _given_urls(self) -> tuple[str, ...]:
        if not self.urls and self.state == DEFAULT_STATE:
            return tuple(os.environ.get(URL_VARIABLE, "").split())
        return self.urls

    def connect(self, *, anew: bool = False) -> Propeller:
        """A client of it; ``anew``: with the user's password, although there is a login that is kept.

        Raises:
            PropellerError: no stack runs there, or the options contradict each other.
        """
        return Propeller(**self._options(anew=anew))

    def connect_async(self) -> AsyncPropeller:
        """The same for programs with an event loop. Raises as ``connect``."""
        return AsyncPropeller(**self._options(anew=False))

    def _options(self, *, anew: bool) -> dict[str, Any]:
        given = self._given_urls()
        if not anew and (kept := self._kept_login(given)) is not None:
            return {"login": kept}
        if not given:
            if self.user is not None:
                raise StartError("--user is only for --url: a stack on this machine is used as its operator")
            if self.ca is not None:
                raise StartError("--ca is only for --url: a stack on this machine says itself which it has")
            return {"stack": read_stack(self.state)}
        addresses: dict[str, Any] = read_addresses(given, with_identity=self.user is not None)
        if self.user is None:
            return {**addresses, "ca_cert": self.ca}
        password = read_password(self.user, PASSWORD_VARIABLE)
        return {**addresses, "ca_cert": self.ca, "user": self.user, "password": password}

    def registry(self) -> tuple[DefaultRegistry, tuple[str, str] | None]:
        """Where a program is whose reference names no registry, and its login there, if it has one.

        That is ``PROXY_REGISTRY_URL``, which a stack that is started in this environment takes, else the stack's own registry.

        Raises:
            PropellerError: it is not known.
        """
        if named := os.environ.get(REGISTRY_VARIABLE):
            return DefaultRegistry.parse(named), None
        given = self._given_urls()
        if not given and (kept := self._kept_login(())) is not None:
            if kept.registry:
                return DefaultRegistry.parse(kept.registry), None
        elif not given:
            stack = read_stack(self.state)
            if address := registry_of_stack(stack):
                return DefaultRegistry.parse(address), operator_of_stack(stack)
        hosts, urls = _split(given)
        if REGISTRY in urls or hosts:
            return DefaultRegistry.parse(urls.get(REGISTRY) or registry_of_host(hosts[0])), None
        raise StartError(
            f"no address of its registry is known: give it as --url {REGISTRY}=URL, or set {REGISTRY_VARIABLE}"
        )

    def _kept_login(self, given: Sequence[str]) -> KeptLogin | None:
        """The login that is kept, if this is about its stack: the one that is named, or none is named and none is in the folder."""
        if not given and (self.state != DEFAULT_STATE or (self.state / "stack.json").exists()):
            return None
        kept = KeptLogin.load() if os.environ.get(PASSWORD_VARIABLE) is None else None
        if kept is None or self.user not in {None, kept.user}:
            return None
        named = read_addresses(given, with_identity=False) if given else {}
        for name in OPERATED:  # they name no stack
            if name not in kept.urls:
                named.pop(name, None)
        if REGISTRY not in _split(given)[1]:
            named.pop(REGISTRY, None)  # the guide's, where the login may have another
        return kept if named.items() <= {**kept.urls, REGISTRY: kept.registry}.items() else None

    def command(self, *words: str) -> str:
        """A command about the same stack, as a person types it."""
        options: list[str] = []
        for one in self.urls:
            options += ["--url", one]
        if self.user is not None:
            options += ["--user", self.user]
        if self.ca is not None:
            options += ["--ca", str(self.ca)]
        if not self.urls and self.state != DEFAULT_STATE:
            options += ["--state", str(self.state)]
        return shlex.join(["propeller", *words, *options])


def read_addresses(given: Sequence[str], *, with_identity: bool) -> dict[str, str]:
    """The addresses of services, and of the registry if it is known, by their names in the Python client.

    Args:
        given: a host, whose services are on the guide's ports, and addresses of services as ``NAME=URL``, which count before those.
        with_identity: whether identity is called too.

    Raises:
        PropellerError: something is none of these, or a service has no address.
    """
    hosts, named = _split(given)
    if len(hosts) > 1:
        raise StartError(f"--url: {' and '.join(hosts)} are two hosts; {_OTHER_PORTS}")
    if hosts:
        return urls_of_host(hosts[0], _OTHER_PORTS) | {REGISTRY: registry_of_host(hosts[0])} | named
    missing = [name for name in PORTS if name not in named and (with_identity or name != "identity")]
    if missing:
        raise StartError(
            f"--url: there is no address of {', '.join(missing)}: give it as --url {missing[0]}=URL, or the host alone "
            "where it is on the guide's ports"
        )
    return named


def _split(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The hosts, and the addresses of services by their names.

    Raises:
        PropellerError: something is neither.
    """
    hosts: list[str] = []
    named: dict[str, str] = {}
    services = (*PORTS, *OPERATED, REGISTRY)
    for one in given:
        name, equals, url = one.partition("=")
        service = name.strip().replace("-", "_")
        if not equals or "/" in name:
            hosts.append(one)
        elif service not in services:
            near = nearest_names(service, services)
            meant = f"did you mean {near[0]}? There" if near else "there"
            raise StartError(f"--url {one}: there is no service {name!r}; {meant} are {', '.join(services)}")
        else:
            named[service] = check_url(service, url)
    return hosts, named


def read_password(user: str, variable: str, *, twice: bool = False) -> str:
    """The password of a user, from a variable or asked for; ``twice`` for a new one, against slips.

    Raises:
        StartError: it is not set, and nobody is there to be asked; or the two differ.
    """
    given = os.environ.get(variable)
    if given:
        return given
    if not sys.stdin.isatty():
        raise StartError(f"no password of {user}; set {variable}")
    password = getpass.getpass(f"Password of {user}: ")
    if twice and getpass.getpass("Again: ") != password:
        raise StartError("these were two different passwords")
    return password
