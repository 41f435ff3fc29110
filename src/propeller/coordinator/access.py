"""Who may control experiments and rounds, and see what others sent."""

from propeller.errors import RefusedError
from propeller.web.auth import Principal


def is_device(who: Principal) -> bool:
    """Whether the caller is one of those that experiments ask, and neither a user nor the manager."""
    return who.kind == "client" and who.role not in {"manager", "coordinator"}


def check_may_control(who: Principal) -> None:
    """Refuse devices: users do this, and the manager.

    Raises:
        RefusedError: the caller is a device.
    """
    if is_device(who):
        raise RefusedError(f"client {who.id} may not control rounds: only users and the manager may")


def check_may_watch(who: Principal) -> None:
    """Refuse devices what others report: their metrics tell of data that stays where it is.

    Raises:
        RefusedError: the caller is a device.
    """
    if is_device(who):
        raise RefusedError(f"client {who.id} may not see experiments: only users and the manager may")
