"""What the manager's routes share: reading pages and JSON bodies, who may give orders."""

from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request

from propeller.errors import RefusedError, UnsupportedTypeError
from propeller.manager.service import Manager
from propeller.protocol.ids import Id
from propeller.protocol.wire import decode_object
from propeller.web.auth import Principal, caller

MAX_LIMIT = 1000

Offset = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
PathId = Annotated[Id, Path()]


def _manager(request: Request) -> Manager:
    manager: Manager = request.app.state.manager
    return manager


TheManager = Annotated[Manager, Depends(_manager)]


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        UnsupportedTypeError: it is announced as something else.
        MalformedMessageError: it is not a JSON object.
    """
    kind = request.headers.get("content-type", "application/json")
    if "json" not in kind.lower():
        raise UnsupportedTypeError(f"Content-Type is {kind[:80]!r}: send application/json")
    return decode_object(await request.body())


Body = Annotated[dict[str, Any], Depends(read_object)]


async def check_operator(principal: Annotated[Principal, Depends(caller)]) -> None:
    """Refuse every client but a manager: devices and services have no business with the fleet and its tasks.

    Raises:
        PropellerError: 403.
    """
    if principal.kind == "client" and principal.role != "manager":
        raise RefusedError(f"client {principal.id} is a {principal.role}: a user or a manager must do this")
