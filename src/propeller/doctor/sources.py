"""Where a stack says what it is: the state folder of ``propeller up``, or the ``.env`` file of containers."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from propeller.doctor.advice import Advice, ContainerAdvice, LocalAdvice
from propeller.doctor.checks import failed
from propeller.doctor.target import Client, SourceError, Target
from propeller.errors import StartError
from propeller.mqtt.address import BrokerAddress
from propeller.process.tls import trust_stack
from propeller.protocol.ids import ID_RULE, InvalidIdError, check_id
from propeller.protocol.topics import Channel
from propeller.protocol.wire import read_count
from propeller.stack.env_file import GUIDE_CLIENTS, EnvFile, id_variable, key_variable, shown_id
from propeller.stack.services import HTTP_SERVICES, IDENTITY_LISTENERS, OPERATOR, PORTS
from propeller.stack.standby import foreign_owners
from propeller.stack.state_folder import StateFolder
from propeller.stack.up import PROGRAM_NAME


def is_state_folder(folder: Path) -> bool:
    """Whether a stack was ever started on a folder."""
    return StateFolder(folder).secrets_file.exists()


def from_state(folder: Path) -> Target:
    """The stack that runs on a state folder.

    Raises:
        SourceError: none runs there, or ``stack.json`` cannot be read.
    """
    state, advice = StateFolder(folder), LocalAdvice(folder)
    process, file = state.running_process(), state.stack_file
    stack = state.read_stack()
    if process is None:
        detail = f"no stack runs on {state.folder}"
        if file.exists():
            named = _shown_process(stack)
            detail = f"{file} was left by a stack that is gone{named}"
        raise SourceError(failed("stack", detail, advice.start()), running=False)
    if stack is None and not file.exists():
        detail, fix = f"a stack is starting on {state.folder} (process {process})", "wait"
        if waiting := [f"{name} is a {text}" for name, text in foreign_owners(state.folder, process).items()]:
            detail, fix = f"{detail}; {'; '.join(waiting)}", "end that process, or wait until it ends"
        raise SourceError(failed("stack", detail, f"{fix}; see {folder / 'logs' / 'up.log'}"), running=True)
    try:
        return _read_stack(stack or {}, folder, advice, process)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else "it is not what a stack writes"
        if isinstance(error, InvalidIdError):
            what = str(error)
        fix = f"end process {process} and start the stack again: {advice.start()}"
        raise SourceError(failed("settings", f"{file}: {what}", fix), running=True) from None


def _shown_process(stack: Mapping[str, Any] | None) -> str:
    try:
        return f" (process {int((stack or {})['processes']['up'])})"
    except (KeyError, TypeError, ValueError):
        return ""


def _read_stack(stack: Mapping[str, Any], folder: Path, advice: LocalAdvice, process: int) -> Target:
    services, broker, admin = stack["services"], stack["broker"], stack["admin"]
    trust_stack(stack.get("ca"))
    channel, settings = (
        Channel(stack["domain_id"], stack["channel_id"]),
        "domain_id and channel_id of stack.json",
    )
    every = {
        name: Client(
            name, str(one["id"]), str(one["key"]), channel, settings, f"clients.{name}.id of stack.json"
        )
        for name, one in stack["clients"].items()
    }
    operator = every.pop(OPERATOR, None)  # who is not on the broker
    clients = tuple(every.values())
    for needed in ("manager", "proxy"):
        if not any(client.name == needed for client in clients):
            raise KeyError(f"clients.{needed}")
    return Target(
        settings=f"{folder / 'stack.json'}: {len(clients)} clients",
        process=f"process {process} runs it",
        services={name: str(services[name.replace("-", "_")]["url"]) for name in HTTP_SERVICES},
        identity={name: str(services["identity"][name]) for name in IDENTITY_LISTENERS},
        broker=BrokerAddress(str(broker["host"]), int(broker["port"]), tls="ca" in stack),
        clients=clients,
        admin=(str(admin["username"]), str(admin["password"])),
        image=str(stack.get("images", {}).get(PROGRAM_NAME, "")),
        folder=folder,
        advice=advice,
        operator=operator,
        certificate=Path(stack["certificate"]) if "certificate" in stack else None,
    )


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
    address = f"[{host}]" if ":" in host else host
    urls = {name: f"http://{address}:{port}" for name, port in ports.items()}
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
        operator=_client(OPERATOR, values) if all(map(values.get, _variables(OPERATOR))) else None,
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
        number = read_count(text, 5)
        if number is None or not 0 < number < 65536:
            detail = f"{path}: {variable}: {text!r} is not a port"
            raise SourceError(
                failed("settings", detail, f"write a number from 1 to 65535, then {advice.start()}"),
                running=True,
            )
        ports[name] = number
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
    work = Channel(values[domain], values[channel])
    return Client(name, values[own_id], values[own_key], work, f"{domain} and {channel}", own_id)


def _image(values: Mapping[str, str]) -> str:
    """The guide's program in the proxy's own registry: under the name of whoever logs in, as on GHCR."""
    user = values.get("PROXY_REGISTRY_USERNAME", "")
    return f"{user}/{PROGRAM_NAME}:latest" if user else f"{PROGRAM_NAME}:latest"
