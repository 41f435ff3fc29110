"""Who calls: a user by bearer token, a device or service by its client id and key, and on loopback the user who runs the service.

Identity checks credentials. Its verdicts are kept for a short time, so that a busy service does not ask about each request; a
revoked client is therefore refused by HTTP within ``VERDICT_TTL_S`` seconds (the broker cuts it off at once).
"""

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from cachetools import TTLCache
from fastapi import Depends, Request
from starlette.types import Scope

from propeller.errors import RefusedError, StartError, UnauthenticatedError, UnavailableError
from propeller.process.audit import AuditLog
from propeller.process.http import Answer, ServiceClient, ServiceError
from propeller.process.logs import get_logger
from propeller.process.settings import HttpSettings, ListenSettings
from propeller.protocol.roles import Role
from propeller.web.peer import is_own_user
from propeller.web.sites import Sites, is_foreign

log = get_logger("auth")

VERDICT_TTL_S = 5.0
_MAX_VERDICTS = 10_000

OPEN_PATHS = frozenset({"/health"})
"""Answered to anyone: load balancers and health checks have no credentials."""


@dataclass(frozen=True)
class Principal:
    """Who is calling.

    Attributes:
        kind: ``user`` or ``client``; ``local`` for the user of this machine who runs the service; ``peer`` for a service or device of
            absmach/propeller, which sends no credentials and is let in by a setting; ``anyone`` where access is open.
        id: the user's or client's id.
        role: in the domain of the service.
        domain: that domain, empty where the service has none.
        name: what the user or client is called, where identity said so.
    """

    kind: Literal["user", "client", "local", "peer", "anyone"]
    id: str = ""
    role: str = ""
    domain: str = ""
    name: str = ""

    def may_act_for(self, client_id: str) -> bool:
        """Whether the caller may speak as this client: itself, or whoever is no client."""
        return self.kind != "client" or self.id == client_id

    def told(self) -> dict[str, str]:
        """As the audit log names the caller."""
        if self.kind == "anyone":
            return {"kind": self.kind}
        return {"kind": self.kind, "name": self.name, "id": self.id, "role": str(self.role)}

    def __str__(self) -> str:
        """As messages name the caller."""
        match self.kind:
            case "local":
                return "the operator of this machine"
            case "peer":
                return f"a {self.role} without credentials"
            case "anyone":
                return "anyone"
            case _:
                return f"{self.kind} {self.id}"


ANYONE = Principal("anyone", role=Role.OPERATOR)

Verify = Callable[[str], Awaitable[Principal]]
"""Checks an ``Authorization`` header; raises ``UnauthenticatedError`` if it is not good, ``RefusedError`` if it is of another domain."""


class IdentityVerifier:
    """Asks the identity service (``POST /auth/verify`` with the header) and keeps its answers for ``VERDICT_TTL_S`` seconds."""

    def __init__(self, identity: ServiceClient, domain_id: str = "") -> None:
        """``domain_id`` is the domain whose users and clients may call."""
        self._identity, self._domain_id = identity, domain_id
        # By the digest of the header: no credential stays in memory for this.
        self._verdicts: TTLCache[bytes, Principal] = TTLCache(_MAX_VERDICTS, VERDICT_TTL_S)

    async def __call__(self, authorization: str) -> Principal:
        """The caller behind an ``Authorization`` header.

        Raises:
            UnauthenticatedError: the header is not good.
            RefusedError: the caller is of another domain.
            UnavailableError: identity does not answer.
        """
        key = hashlib.sha256(authorization.encode()).digest()
        known = self._verdicts.get(key)
        if known is not None:
            return known
        body = {"authorization": authorization} | ({"domain": self._domain_id} if self._domain_id else {})
        try:
            answer = await self._identity.request("POST", "/auth/verify", json=body)
        except ServiceError as error:
            if issubclass(error.kind, RefusedError):
                raise error.kind(error.reason) from None
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
        further = {name: verdict.get(name, "") for name in ("role", "domain", "name")}
        return Principal(verdict["kind"], verdict["id"], **further)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UnavailableError("cannot check credentials: identity's answer cannot be read") from None


class Admission:
    """Finds out who sends a request, and refuses those whom it does not know."""

    def __init__(
        self,
        verify: Verify | None = None,
        *,
        everyone: bool = False,
        local: bool = False,
        peer_role: str = "",
        sites: Sites | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """How callers are recognised.

        Args:
            verify: checks credentials; ``None`` for a service without an identity service.
            everyone: whether access is open.
            local: whether the user of this machine who runs the service is its operator, on loopback.
            peer_role: the role of those who send no credentials; empty to refuse them.
            sites: the names of the service; ``None`` where nobody calls it from a browser.
            audit: where it is written down who changed what.
        """
        self._verify, self._everyone, self._local = verify, everyone, local
        self._peer_role, self._sites, self.audit = peer_role, sites, audit

    async def __call__(self, scope: Scope) -> Principal:
        """Who sends a request.

        Raises:
            UnauthenticatedError: it is not known who.
            RefusedError: a caller of another domain, or a page of another site.
            UnavailableError: identity does not answer.
        """
        headers = dict(scope["headers"])
        if self._sites is not None:
            self._sites.check(scope["method"], headers, (scope.get("server") or ("",))[0])
        if self._everyone:
            return ANYONE
        header = headers.get(b"authorization", b"")
        if header and self._verify is not None:
            return await self._verify(header.decode("latin-1"))
        if self._local and not is_foreign(headers) and is_own_user(scope):
            return Principal("local", f"local:{os.geteuid()}", Role.OPERATOR)
        if self._peer_role and not header:
            return Principal("peer", role=self._peer_role)
        if header:
            raise UnauthenticatedError(
                "this service knows no identity service that checks credentials: set PROPELLER_IDENTITY_URL"
            )
        raise UnauthenticatedError("credentials required: a user's bearer token, or a client's id and key")

    async def aclose(self) -> None:
        """Close what credentials are checked with; the audit log is written until the process ends."""
        if isinstance(self._verify, IdentityVerifier):
            await self._verify.aclose()


def admission(service: str, settings: HttpSettings, domain_id: str | None = None) -> Admission:
    """How a service recognises its callers, by its settings.

    Args:
        service: its name, for the log.
        settings: of the service.
        domain_id: the service's domain, if its settings have another name for it.

    Raises:
        StartError: there is an identity service, and nothing says which domain is served.
    """
    sites = Sites(settings.hosts.split(","))
    audit = open_audit(service, settings)
    if settings.auth == "off":
        log.warning(
            "access is open: whoever reaches this service may use it (PROPELLER_AUTH=off)",
            service_name=service,
        )
        return Admission(everyone=True, sites=sites, audit=audit)
    if settings.peer_role:
        log.warning(
            "callers without credentials are let in (PROPELLER_PEER_ROLE)",
            service_name=service,
            role=settings.peer_role,
        )
    verify = None
    if settings.identity_url is not None:
        domain = domain_id or settings.domain
        if domain is None:
            raise StartError(
                f"{service}: PROPELLER_IDENTITY_URL needs PROPELLER_DOMAIN_ID: the domain whose users and clients may call"
            )
        identity = ServiceClient("identity", settings.identity_url, timeout=5.0, retry_delays=(0.1, 0.4))
        verify = IdentityVerifier(identity, domain)
    return Admission(verify, local=True, peer_role=settings.peer_role or "", sites=sites, audit=audit)


def open_audit(service: str, settings: ListenSettings) -> AuditLog | None:
    """The audit log of a service, if it keeps one.

    Raises:
        StartError: it cannot be written, or is damaged.
    """
    return None if settings.audit_log is None else AuditLog(settings.audit_log, service)


async def caller(request: Request) -> Principal:
    """FastAPI dependency: who calls, as the app's ``AuthenticationMiddleware`` found."""
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(caller)]
"""Who calls, as an argument of a handler."""
