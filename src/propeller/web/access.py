"""Who may send which request to a service: a table of its routes, and whoever is not in it may not."""

from collections.abc import Iterable, Mapping

from propeller.errors import RefusedError
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.web.auth import Principal

AccessTable = Mapping[str, frozenset[Role]]
"""A route as ``GET /tasks/{task_id}`` → the roles that may send it."""

COMMON: AccessTable = {"GET /metrics": WATCH, "GET /audit": CONTROL, "GET /logs": CONTROL}
"""The routes of every service."""


def check_access(table: AccessTable, methods: Iterable[str], path: str, who: Principal) -> None:
    """See that a caller may use a route.

    Raises:
        RefusedError: the caller's role may not; the text says which may.
    """
    for method in methods:
        allowed = table.get(f"{method} {path}", CONTROL)
        if who.role not in allowed:
            standing = f"is {_article(who.role)}" if who.role else "has no role in this domain"
            raise RefusedError(
                f"{who} {standing}: it may not {method} {path}; this is for {', '.join(sorted(allowed))}"
            )


def _article(role: str) -> str:
    return f"an {role}" if role[:1] in "aeiou" else f"a {role}"
