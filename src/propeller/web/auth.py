"""Who calls: a user by bearer token, a device or service by its client id and key; identity checks the credentials.

Verdicts are kept for a short time, so that a busy service does not ask about each request; a revoked client is
therefore refused by HTTP within ``VERDICT_TTL_S`` seconds (the broker cuts it off at once).
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from cachetools import TTLCache
from fastapi import Depends, Request

from propeller.errors import UnauthenticatedError, UnavailableError
from propeller.process.http import Answer, ServiceClient, ServiceError
from propeller.process.settings import HttpSettings

VERDICT_TTL_S = 5.0
_MAX_VERDICTS = 10_000

OPEN_PATHS = frozenset({"/health"})
"""Answered to anyone: load balancers and health checks have no credentials."""


@dataclass(frozen=True)
class Principal:
    """Who is calling.

    Attributes:
        kind: ``user`` or ``client``; ``anyone`` where authentication is off.
        id: the user's or client's id.
        role: of a client: ``manager``, ``proplet``, ``coordinator``, ``proxy`` or ``device``; of a user: ``admin`` or ``user``.
    """

    kind: Literal["user", "client", "anyone"]
    id: str = ""
    role: str = ""

    def may_act_for(self, client_id: str) -> bool:
        """Whether the caller may speak as this client: itself, a user, or anyone where authentication is off."""
        return self.kind != "client" or self.id == client_id


ANYONE = Principal("anyone")

Verify = Callable[[str], Awaitable[Principal]]
"""Checks an ``Authorization`` header; raises ``UnauthenticatedError`` if it is not good."""


class IdentityVerifier:
    """Asks the identity service (``POST /auth/verify`` with the header) and keeps its answers for ``VERDICT_TTL_S`` seconds."""

    def __init__(self, identity: ServiceClient) -> None:
        self._identity = identity
        # By the digest of the header: no credential stays in memory for this.
        self._verdicts: TTLCache[bytes, Principal] = TTLCache(_MAX_VERDICTS, VERDICT_TTL_S)

    async def __call__(self, authorization: str) -> Principal:
        """The caller behind an ``Authorization`` header.

        Raises:
            UnauthenticatedError: the header is not good.
            UnavailableError: identity does not answer.
        """
        key = hashlib.sha256(authorization.encode()).digest()
        known = self._verdicts.get(key)
        if known is not None:
            return known
        try:
            answer = await self._identity.request(
                "POST", "/auth/verify", json={"authorization": authorization}
            )
        except ServiceError as error:
            if error.kind is UnauthenticatedError:
                raise UnauthenticatedError(error.reason) from None
            raise UnavailableError(f"cannot check credentials: {error}") from None
        principal = _read_verdict(answer)
        self._verdicts[key] = principal
        return principal

    async def aclose(self) -> None:
        """Close the connections to identity."""
        await self._identity.aclose()


def _read_verdict(answer: Answer) -> Principal:
    try:
        verdict = answer.json()
        return Principal(verdict["kind"], verdict["id"], verdict.get("role", ""))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UnavailableError("cannot check credentials: identity's answer cannot be read") from None


def verifier(settings: HttpSettings) -> Verify | None:
    """How a service checks its callers: by its settings, through identity or not at all."""
    if settings.auth == "off" or settings.identity_url is None:
        return None
    identity = ServiceClient("identity", settings.identity_url, timeout=5.0, retry_delays=(0.1, 0.4))
    return IdentityVerifier(identity)


async def caller(request: Request) -> Principal:
    """FastAPI dependency: who calls, as the app's ``AuthenticationMiddleware`` found."""
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(caller)]
"""Who calls, as an argument of a handler."""
