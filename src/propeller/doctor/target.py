"""What there is to examine: addresses, ids and keys of one stack."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from propeller.doctor.advice import Advice
from propeller.doctor.findings import Finding
from propeller.mqtt.address import BrokerAddress
from propeller.protocol.topics import Channel
from propeller.stack.variables import shown_id


class SourceError(Exception):
    """A stack cannot be examined, as it does not say what it is.

    Attributes:
        finding: why, and what to do.
        running: whether it may run all the same.
    """

    def __init__(self, finding: Finding, *, running: bool) -> None:
        super().__init__(finding.detail)
        self.finding, self.running = finding, running


@dataclass(frozen=True)
class Place:
    """Where a client works; ``settings`` names what says so."""

    channel: Channel
    settings: str


@dataclass(frozen=True)
class Client:
    """A client of the broker: ``name`` as identity has it, ``setting`` names what holds its id."""

    name: str
    id: str
    key: str = field(repr=False)
    place: Place
    setting: str

    @property
    def shown(self) -> str:
        """Its name and id, for a person."""
        return f"{self.name} ({shown_id(self.id)})"

    @property
    def is_proplet(self) -> bool:
        """Whether it is a device."""
        return self.name.startswith("proplet-")


@dataclass(frozen=True)
class Target:
    """A stack.

    Attributes:
        settings: what was read, for a person.
        process: what runs it, where that is known.
        services: addresses by the names of ``HTTP_SERVICES``.
        identity: identity's four addresses.
        broker: the broker's address.
        clients: those that it runs, the manager first.
        admin: name and password of identity's first user, where they are known.
        image: a program that it should be able to fetch; empty if none is known.
        folder: where its state is, if that is on this machine.
        advice: how it is mended.
    """

    settings: str
    process: str
    services: Mapping[str, str]
    identity: Mapping[str, str]
    broker: BrokerAddress
    clients: tuple[Client, ...]
    admin: tuple[str, str] | None = field(repr=False)
    image: str
    folder: Path | None
    advice: Advice

    def client(self, name: str) -> Client:
        """A client by its name; there are always ``manager`` and ``proxy``."""
        return next(client for client in self.clients if client.name == name)

    def owner(self, client_id: str) -> Client | None:
        """The client with an id."""
        return next((client for client in self.clients if client.id == client_id), None)

    @property
    def proplets(self) -> list[Client]:
        """The devices that should be there."""
        return [client for client in self.clients if client.is_proplet]
