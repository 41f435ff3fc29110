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
        placed: clients that the broker lets in, and into their channel.
        displaced: clients that it lets in, but not into their channel.
        proplets: what the manager says of each, by id; ``None`` while it is not known.
        newest_round: what the coordinator says of it; ``None`` if there is none, or it is not known.
    """

    clocks: dict[str, float] = field(default_factory=dict)
    identity_away: bool = False
    placed: list[Client] = field(default_factory=list)
    displaced: list[Client] = field(default_factory=list)
    proplets: dict[str, dict[str, Any]] | None = None
    newest_round: dict[str, Any] | None = None
