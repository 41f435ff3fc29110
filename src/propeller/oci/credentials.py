"""Credentials of registries, among them those that ``docker login`` has stored."""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from propeller.oci.reference import Registry
from propeller.process.logs import get_logger

log = get_logger("oci")


@dataclass(frozen=True)
class Login:
    """A user name and password (or personal access token)."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The ``Authorization`` header of HTTP Basic."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Token:
    """A bearer token that the registry takes as it is."""

    value: str = field(repr=False)


Credential = Login | Token

Logins = Mapping[str, Credential]
"""Credentials by registry, as ``str(Registry)`` writes it: those for ``ghcr.io`` are not for ``http://ghcr.io``."""


def logins_for(registry: Registry, credential: Credential | None = None) -> Logins:
    """A credential for a registry (else that of ``docker login``), and beside it those of ``docker login`` for others.

    Docker keeps hosts only. For ``registry`` itself its login is taken even if that registry speaks plain HTTP, as
    whoever calls this asked for it; for other registries it is not.
    """
    found = docker_logins()
    own = credential or found.get(registry.host)
    return {**found, str(registry): own} if own is not None else found


def docker_logins(folder: Path | None = None) -> dict[str, Credential]:
    """The logins in ``config.json`` of Docker's folder (``DOCKER_CONFIG``, else ``~/.docker``), by registry host.

    Credential helpers are programs of others and are not run: a log line names their registries.
    A missing or broken file gives no logins.
    """
    folder = folder or Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    path = folder / "config.json"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("cannot read Docker's logins", path=str(path), reason=str(error))
        return {}
    config = document if isinstance(document, dict) else {}
    found: dict[str, Credential] = {}
    unusable = list(_mapping(config.get("credHelpers")))
    for name, entry in _mapping(config.get("auths")).items():
        host = _host(name)
        credential = _credential(entry)
        if credential is not None:
            found[host] = credential
        else:
            unusable.append(host)
    if unusable:
        log.warning(
            "logins kept by a credential helper are not used; set the user name and password of the registry instead",
            hosts=sorted(set(unusable)),
        )
    return found


def _credential(entry: Any) -> Credential | None:
    fields = _mapping(entry)
    if isinstance(token := fields.get("registrytoken"), str) and token:
        return Token(token)
    username, password = fields.get("username"), fields.get("password")
    if isinstance(auth := fields.get("auth"), str) and auth:
        try:
            username, _, password = base64.b64decode(auth).decode().partition(":")
        except ValueError:  # no base64, or no text in it
            return None
    if isinstance(username, str) and isinstance(password, str) and username and password:
        return Login(username, password.strip("\0"))
    return None


def _host(name: str) -> str:
    """Docker writes a host, or for Docker Hub and old files a URL (``https://index.docker.io/v1/``)."""
    host = name.rpartition("://")[2].partition("/")[0].lower()
    return "docker.io" if host in {"index.docker.io", "registry-1.docker.io"} else host


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
