"""Where the services of a stack are, and who calls them."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from propeller.errors import InvalidError, PropellerError
from propeller.sdk.transport import Transport

PORTS = {
    "manager": 7070,
    "coordinator": 8086,
    "model_registry": 8084,
    "data_store": 8083,
    "identity": 9002,
}
"""The ports of a stack as the guide has them; of identity that of users."""

OPERATED = {"aggregator": 8085, "proxy": 9191}
"""The ports of the services that no client needs, and operators look at: they may be out of reach."""

_REFUSED_S, _UNAUTHORIZED = 30.0, 401
"""For how long a password that was refused is not tried again, in seconds; the status of that."""

REGISTRY, REGISTRY_PORT = "oci_registry", 5000
"""The stack's own registry of programs, as it is named among its services, and its port."""

OTHER_PORTS = (
    "for other ports give manager=, coordinator=, model_registry=, data_store=, identity= and oci_registry="
)
"""How the addresses of services are given that are not on the guide's ports."""


def urls_of_host(url: str, other_ports: str = OTHER_PORTS) -> dict[str, str]:
    """The addresses of the services of a stack by the host that it runs on, on the guide's ports.

    Args:
        url: the host.
        other_ports: how the caller is given other addresses, for the error.

    Raises:
        InvalidError: it is no host, or names one port, where each service has its own.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidError(f"url: {url!r} is not the address of a host; write it as http://fleet.example")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if port is not None or parts.path.strip("/") or parts.query or parts.username:
        raise InvalidError(
            f"url: give the host alone, as {parts.scheme}://{parts.hostname}: each service has a port of its own "
            f"({', '.join(f'{name} {number}' for name, number in PORTS.items())}); {other_ports}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return {name: f"{parts.scheme}://{host}:{number}" for name, number in (PORTS | OPERATED).items()}


def check_url(service: str, url: str) -> str:
    """The address of a service, without a slash at its end.

    Raises:
        InvalidError: it is not one.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or any(one.isspace() for one in url):
        raise InvalidError(
            f"{service}: {url!r} is not an address; write it as http://fleet.example:{PORTS.get(service, REGISTRY_PORT)}"
        )
    return url.rstrip("/")


@dataclass
class Login:
    """A user, and the token that identity gave."""

    identity: str
    user: str
    password: str = field(repr=False)
    _token: str = field(default="", repr=False)
    _refused: tuple[float, Any] | None = field(default=None, repr=False)
    """When identity refused the password last, and its answer."""

    def headers(self) -> dict[str, str]:
        """What a request carries."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    async def renew(self, transport: Transport) -> Any:
        """Ask for a token; gives identity's answer, whose status says whether that went well; ``None``: it need not be asked.

        A password that was refused is not tried again for a while: a command that asks five services would be slowed down for it.
        """
        if self._refused is not None and time.monotonic() - self._refused[0] < _REFUSED_S:
            return self._refused[1]
        body = {"username": self.user, "password": self.password}
        self._token = ""
        answer = await transport.send("POST", f"{self.identity}/users/tokens/issue", json=body)
        self._refused = (time.monotonic(), answer) if answer.status_code == _UNAUTHORIZED else None
        if answer.is_success:
            self._token = answer.json()["access_token"]
        return answer


def read_stack(folder: str | Path) -> dict[str, Any]:
    """``stack.json`` of a state folder.

    Raises:
        PropellerError: no stack is ready there.
    """
    try:
        stack: dict[str, Any] = json.loads((Path(folder) / "stack.json").read_text())
    except (OSError, ValueError):
        above = _find_above(Path(folder))
        other = f", or name the one in the folder above: --state {above}" if above else ""
        raise PropellerError(
            f"no stack is ready on {folder}: start one with 'propeller up --state {folder}'{other}"
        ) from None
    return stack


def _find_above(folder: Path) -> str | None:
    """The stack of this name in the folder above, as a relative path: where one is who has just entered a project."""
    above = Path("..") / folder
    return str(above) if not folder.is_absolute() and (above / "stack.json").is_file() else None


def urls_of_stack(stack: Mapping[str, Any]) -> dict[str, str]:
    """The addresses of the services that a client calls, and of those that an operator looks at."""
    services = {name: service["url"] for name, service in stack.get("services", {}).items()}
    return {name: services[name] for name in PORTS | OPERATED if name in services}


def registry_of_stack(stack: Mapping[str, Any]) -> str:
    """The address of the stack's own registry of programs, empty if it has none."""
    url: str = stack.get("services", {}).get(REGISTRY, {}).get("url", "")
    return url


def registry_of_host(url: str) -> str:
    """The address of the registry on a stack's host, on the guide's port."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{REGISTRY_PORT}"


def operator_of_stack(stack: Mapping[str, Any]) -> tuple[str, str] | None:
    """The id and key of the stack's operator."""
    operator = stack.get("clients", {}).get("operator")
    return (operator["id"], operator["key"]) if operator else None


def devices_of_stack(stack: Mapping[str, Any]) -> dict[str, str]:
    """The names that a stack on this machine gives its devices: name → id; none of a stack elsewhere."""
    clients: dict[str, dict[str, str]] = stack.get("clients", {})
    return {name: client["id"] for name, client in clients.items() if name.startswith("proplet-")}
