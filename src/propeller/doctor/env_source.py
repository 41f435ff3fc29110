"""A stack of containers, as its ``.env`` file tells; or one of ``propeller up``, by an ``.env`` file in its state folder."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from propeller.doctor.advice import Advice, ContainerAdvice
from propeller.doctor.findings import failed
from propeller.doctor.state_source import from_state, is_state_folder
from propeller.doctor.target import Client, Place, SourceError, Target
from propeller.mqtt.address import BrokerAddress
from propeller.process.run import StartError
from propeller.protocol.ids import ID_RULE, InvalidIdError, check_id
from propeller.protocol.topics import Channel
from propeller.stack.env_file import EnvFile
from propeller.stack.services import HTTP_SERVICES, IDENTITY_LISTENERS, PORTS
from propeller.stack.up import PROGRAM_NAME
from propeller.stack.variables import GUIDE_CLIENTS, id_variable, key_variable, shown_id

_PROPLET_ID = re.compile(r"PROPLET_([0-9]+)_CLIENT_ID")


def from_env(path: Path, host: str = "localhost") -> Target:
    """The stack whose ids and keys are in an ``.env`` file.

    In a state folder it is that of the stack which runs there, wherever it listens; else one of containers, on ``host`` with
    the guide's ports or those that the file chooses (``PORT_MANAGER`` …).

    Raises:
        SourceError: the file cannot be read or lacks something, or no stack runs on the state folder.
    """
    if is_state_folder(path.parent):
        target = from_state(path.parent)
        names = [client.name for client in target.clients]
        clients = _clients(path, names, _values(path, target.advice), target.advice)
        return replace(target, settings=f"{path}: {len(clients)} clients", clients=clients)
    advice = ContainerAdvice(path)
    values = _values(path, advice)
    further = [match[1] for name in values if values[name] and (match := _PROPLET_ID.fullmatch(name))]
    names = list(dict.fromkeys([*GUIDE_CLIENTS, *(f"proplet-{number}" for number in further)]))
    clients = _clients(path, names, values, advice)
    username, password = values.get("IDENTITY_ADMIN_USERNAME"), values.get("IDENTITY_ADMIN_PASSWORD")
    ports = _ports(path, values, advice)
    place = f"[{host}]" if ":" in host else host
    urls = {name: f"http://{place}:{port}" for name, port in ports.items()}
    return Target(
        settings=f"{path}: {len(clients)} clients",
        process=f"it listens on {host}",
        services={name: urls[name] for name in HTTP_SERVICES if name != "identity"}
        | {"identity": urls["identity-users"]},
        identity={name: urls[f"identity-{name}"] for name in IDENTITY_LISTENERS},
        broker=BrokerAddress(host, ports["broker"]),
        clients=clients,
        admin=(username, password) if username and password else None,
        image=_image(values),
        folder=None,
        advice=advice,
    )


def _values(path: Path, advice: Advice) -> dict[str, str]:
    try:
        file = EnvFile.read(path.resolve())
    except StartError as error:
        raise SourceError(failed("settings", str(error), advice.right_ids()), running=True) from None
    if file.text is None:
        raise SourceError(failed("settings", f"there is no file {path}", advice.right_ids()), running=True)
    return file.values


def _ports(path: Path, values: Mapping[str, str], advice: Advice) -> dict[str, int]:
    """The ports of the host, as ``deploy/compose.yaml`` publishes them.

    Raises:
        SourceError: one is no port.
    """
    ports = {}
    for name, port in PORTS.items():
        variable = port.host_variable
        text = values.get(variable) or str(port.host)
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            detail = f"{path}: {variable}: {text!r} is not a port"
            raise SourceError(
                failed("settings", detail, f"write a number from 1 to 65535, then {advice.start()}"),
                running=True,
            )
        ports[name] = int(text)
    return ports


def _clients(path: Path, names: list[str], values: Mapping[str, str], advice: Advice) -> tuple[Client, ...]:
    """The clients of these names.

    Raises:
        SourceError: naming every variable that is missing, or the first with a value that is not an id.
    """
    wanted = [variable for name in names for variable in _variables(name)]
    missing = [variable for variable in dict.fromkeys(wanted) if not values.get(variable)]
    detail = f"{path}: {', '.join(missing)} not set" if missing else ""
    for variable in wanted:
        if not detail and not variable.endswith("_KEY"):
            try:
                check_id(values[variable])
            except InvalidIdError:
                detail = f"{path}: {variable}: {shown_id(values[variable])!r} is not an id: use {ID_RULE}"
    if detail:
        raise SourceError(failed("settings", detail, advice.right_ids()), running=True)
    return tuple(_client(name, values) for name in names)


def _variables(name: str) -> tuple[str, str, str, str]:
    """Those of a client's domain, channel, id and key."""
    # The coordinator works where the manager does, and every proplet where the first does.
    prefix = "PROPLET" if name.startswith("proplet-") else "PROXY" if name == "proxy" else "MANAGER"
    return f"{prefix}_DOMAIN_ID", f"{prefix}_CHANNEL_ID", id_variable(name), key_variable(name)


def _client(name: str, values: Mapping[str, str]) -> Client:
    domain, channel, own_id, own_key = _variables(name)
    place = Place(Channel(values[domain], values[channel]), f"{domain} and {channel}")
    return Client(name, values[own_id], values[own_key], place, own_id)


def _image(values: Mapping[str, str]) -> str:
    """The guide's program in the proxy's own registry: under the name of whoever logs in, as on GHCR."""
    user = values.get("PROXY_REGISTRY_USERNAME", "")
    return f"{user}/{PROGRAM_NAME}:latest" if user else f"{PROGRAM_NAME}:latest"
