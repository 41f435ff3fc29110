"""Who may control experiments and rounds."""

from propeller.errors import RefusedError
from propeller.web.auth import Principal


def check_may_control(who: Principal) -> None:
    """Refuse devices: users do this, and the manager.

    Raises:
        RefusedError: the caller is another client.
    """
    if who.kind == "client" and who.role not in {"manager", "coordinator"}:
        raise RefusedError(f"client {who.id} may not control rounds: only users and the manager may")
