"""The stack of ``propeller up``, as its state folder tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from propeller.doctor.advice import LocalAdvice
from propeller.doctor.findings import failed
from propeller.doctor.target import Client, Place, SourceError, Target
from propeller.mqtt.address import BrokerAddress
from propeller.protocol.ids import InvalidIdError
from propeller.protocol.topics import Channel
from propeller.stack.services import HTTP_SERVICES, IDENTITY_LISTENERS
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
    holder, file = state.running_process(), state.stack_file
    stack = state.read_stack()
    if holder is None:
        detail = f"no stack runs on {state.folder}"
        if file.exists():
            process = _process(stack)
            detail = f"{file} was left by a stack that is gone{process}"
        raise SourceError(failed("stack", detail, advice.start()), running=False)
    if stack is None and not file.exists():
        detail = f"a stack is starting on {state.folder} (process {holder})"
        raise SourceError(failed("stack", detail, f"wait; see {folder / 'logs' / 'up.log'}"), running=True)
    try:
        return _read(stack or {}, folder, advice, holder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else "it is not what a stack writes"
        if isinstance(error, InvalidIdError):
            what = str(error)
        fix = f"end process {holder} and start the stack again: {advice.start()}"
        raise SourceError(failed("settings", f"{file}: {what}", fix), running=True) from None


def _process(stack: Mapping[str, Any] | None) -> str:
    try:
        return f" (process {int((stack or {})['processes']['up'])})"
    except (KeyError, TypeError, ValueError):
        return ""


def _read(stack: Mapping[str, Any], folder: Path, advice: LocalAdvice, holder: int) -> Target:
    services, broker, admin = stack["services"], stack["broker"], stack["admin"]
    place = Place(Channel(stack["domain_id"], stack["channel_id"]), "domain_id and channel_id of stack.json")
    clients = tuple(
        Client(name, str(one["id"]), str(one["key"]), place, f"clients.{name}.id of stack.json")
        for name, one in stack["clients"].items()
    )
    for needed in ("manager", "proxy"):
        if not any(client.name == needed for client in clients):
            raise KeyError(f"clients.{needed}")
    return Target(
        settings=f"{folder / 'stack.json'}: {len(clients)} clients",
        process=f"process {holder} runs it",
        services={name: str(services[name.replace("-", "_")]["url"]) for name in HTTP_SERVICES},
        identity={name: str(services["identity"][name]) for name in IDENTITY_LISTENERS},
        broker=BrokerAddress(str(broker["host"]), int(broker["port"])),
        clients=clients,
        admin=(str(admin["username"]), str(admin["password"])),
        image=str(stack.get("images", {}).get(PROGRAM_NAME, "")),
        folder=folder,
        advice=advice,
    )
