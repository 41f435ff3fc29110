"""What checks learn and later ones use."""

from dataclasses import dataclass, field
from typing import Any

from propeller.doctor.target import Client


@dataclass
class Facts:
    """Found while the checks run.

    Attributes:
        clocks: by service, how many seconds its clock is ahead of this machine's.
        identity_away: identity says that it has no connection to the broker.
        subscriptions: how many of QoS 1 and 2 the broker has, and how many it may have; ``None`` while identity does not say.
        placed: clients that the broker lets in, and into their channel.
        displaced: clients that it lets in, but not into their channel.
        refused: clients that it does not let in.
        proplets: what the manager says of each, by id; ``None`` while it is not known.
        newest_round: what the coordinator says of it; ``None`` if there is none, or it is not known.
    """

    clocks: dict[str, float] = field(default_factory=dict)
    identity_away: bool = False
    subscriptions: tuple[int, int] | None = None
    placed: list[Client] = field(default_factory=list)
    displaced: list[Client] = field(default_factory=list)
    refused: list[Client] = field(default_factory=list)
    proplets: dict[str, dict[str, Any]] | None = None
    newest_round: dict[str, Any] | None = None

    def shut_out(self, client: Client) -> bool:
        """Whether it is known why a client does nothing: what follows from that is not told again."""
        return client in self.refused or client in self.displaced
