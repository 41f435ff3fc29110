"""The stack that is examined: its addresses, ids and keys, and what the checks have learned of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from propeller.doctor.advice import Advice
from propeller.doctor.checks import Finding
from propeller.mqtt.address import BrokerAddress
from propeller.protocol.topics import Channel
from propeller.stack.env_file import shown_id


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
class Client:
    """A client of the broker.

    Attributes:
        name: as identity has it.
        id: its id there.
        key: its key.
        channel: where it works.
        channel_settings: what says so.
        id_setting: what holds its id.
    """

    name: str
    id: str
    key: str = field(repr=False)
    channel: Channel
    channel_settings: str
    id_setting: str

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
        advice: how it is fixed.
        operator: the client of the person who runs it, where it is known.
        certificate: what its servers show, if they speak TLS.
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
    operator: Client | None = None
    certificate: Path | None = None

    @property
    def caller(self) -> Client:
        """Whose key goes to a service that asks who calls."""
        return self.operator or self.client("manager")

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


@dataclass
class Observations:
    """Found while the checks run.

    Attributes:
        clocks: by service, how many seconds its clock is ahead of this machine's.
        identity_disconnected: whether identity says that it has no connection to the broker; ``None`` while it does not say.
        subscriptions: how many of QoS 1 and 2 the broker has, and how many it may have; ``None`` while identity does not say.
        in_channel: clients that the broker lets in, and into their channel.
        outside_channel: clients that it lets in, but not into their channel.
        refused: clients that it does not let in.
        proplets: what the manager says of each, by id; ``None`` while it is not known.
        newest_round: what the coordinator says of it; ``None`` if there is none, or it is not known.
    """

    clocks: dict[str, float] = field(default_factory=dict)
    identity_disconnected: bool | None = None
    subscriptions: tuple[int, int] | None = None
    in_channel: list[Client] = field(default_factory=list)
    outside_channel: list[Client] = field(default_factory=list)
    refused: list[Client] = field(default_factory=list)
    proplets: dict[str, dict[str, Any]] | None = None
    newest_round: dict[str, Any] | None = None

    def is_shut_out(self, client: Client) -> bool:
        """Whether it is known why a client does nothing: what follows from that is not told again."""
        return client in self.refused or client in self.outside_channel
