"""Answers to a registry's ``WWW-Authenticate``: HTTP Basic, a given token, or the token flow of the distribution project.

The flow (distribution, "Token Authentication Specification"): a 401 names a token server, a service and a scope; the
token server is asked with the login of that registry, or with none for what is public, and its token is kept until
shortly before it expires.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from propeller.oci.answers import detail_of, read_document
from propeller.oci.credentials import Login, Logins, Token
from propeller.oci.errors import (
    LOGIN_HELP,
    NotFoundError,
    OciError,
    RegistryError,
    UnauthorizedError,
    from_status,
    no_permission,
)
from propeller.oci.reference import Registry

_CHALLENGE = re.compile(r'([A-Za-z]+)\s+((?:[A-Za-z_]+=(?:"[^"]*"|[^\s",]+)\s*,?\s*)+)')
_PARAMETER = re.compile(r'([A-Za-z_]+)=(?:"([^"]*)"|([^\s",]+))')
_DEFAULT_LIFE_S, _MARGIN_S = 60.0, 10.0
_MOST_KEPT = 1000


@dataclass(frozen=True)
class Scope:
    """What a request does: ``pull`` or ``pull,push`` in one repository."""

    repository: str
    actions: str = "pull"

    def __str__(self) -> str:
        """As the token server takes it."""
        return f"repository:{self.repository}:{self.actions}"


@dataclass(frozen=True)
class Purpose:
    """What requests are for: their registry, the access they need, and what errors call them."""

    registry: Registry
    scope: Scope
    what: str


@dataclass(frozen=True)
class _Kept:
    header: str = field(repr=False)
    until: float


def challenges(header: str) -> dict[str, dict[str, str]]:
    """The challenges in ``WWW-Authenticate`` by scheme in lower case, each with its parameters."""
    return {
        scheme.lower(): {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(text)}
        for scheme, text in _CHALLENGE.findall(header)
    }


class Authorizer:
    """Finds the ``Authorization`` header for a request to a registry; keeps what it learned.

    A credential is for one registry: it is sent to that host, and as the token flow needs it to the token server
    that this host names (over HTTPS unless the registry itself is plain HTTP).
    """

    def __init__(self, logins: Logins, login_help: str = LOGIN_HELP) -> None:
        """``login_help`` tells a person how to give a login (``errors.LOGIN_HELP``)."""
        self._logins, self._login_help = logins, login_help
        self._kept: dict[tuple[str, Scope], _Kept] = {}

    def known(self, registry: Registry, scope: Scope) -> str | None:
        """The header to send at once, if there is one."""
        credential = self._logins.get(str(registry))
        if isinstance(credential, Token):
            return f"Bearer {credential.value}"
        kept = self._kept.get((registry.base_url, scope))
        return kept.header if kept is not None and kept.until > time.monotonic() else None

    async def answer(self, http: httpx.AsyncClient, purpose: Purpose, header: str) -> str | None:
        """The header that a 401's ``WWW-Authenticate`` asks for; ``None`` if nothing here can answer it.

        Raises:
            OciError: the token server refused, or must not be asked.
        """
        asked = challenges(header)
        credential = self._logins.get(str(purpose.registry))
        if isinstance(credential, Token):
            return None  # it was sent already
        if "bearer" in asked:
            kept = await self._token(http, purpose, asked["bearer"], credential)
        elif "basic" in asked and credential is not None:
            kept = _Kept(credential.basic, float("inf"))
        else:
            return None
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[purpose.registry.base_url, purpose.scope] = kept
        return kept.header

    async def error(self, response: httpx.Response, purpose: Purpose) -> OciError:
        """The error for a registry's answer that is not a success."""
        detail, host = await detail_of(response), purpose.registry.host
        login_help = self._login_help.replace("{host}", host).replace("{registry}", str(purpose.registry))
        if response.status_code == httpx.codes.UNAUTHORIZED:
            asked = challenges(", ".join(response.headers.get_list("www-authenticate")))
            if asked.get("bearer", {}).get("error") == "insufficient_scope":
                return no_permission(purpose.what, host, detail, login_help)
        return from_status(response.status_code, purpose.what, host, detail, login_help)

    async def _token(
        self, http: httpx.AsyncClient, purpose: Purpose, challenge: Mapping[str, str], login: Login | None
    ) -> _Kept:
        registry = purpose.registry
        realm = httpx.URL(challenge.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and registry.plain_http):
            raise UnauthorizedError(
                f"{registry.host} names the token server {str(realm)[:200]!r}, which is not HTTPS",
                "no credentials were sent; ask whoever runs this registry",
            )
        query = {"scope": challenge.get("scope") or str(purpose.scope)}
        if service := challenge.get("service"):
            query["service"] = service
        headers = {"Authorization": login.basic} if login else {}
        async with http.stream("GET", realm.copy_merge_params(query), headers=headers) as response:
            if not response.is_success:
                raise await self._refused(response, purpose)
            text = await read_document(response, f"the token server of {registry.host}")
        try:
            document = json.loads(text)
            token = document.get("token") or document.get("access_token")
            life = float(document.get("expires_in") or _DEFAULT_LIFE_S)
        except (ValueError, TypeError, AttributeError):
            token, life = None, 0.0
        if not isinstance(token, str) or not token:
            raise UnauthorizedError(
                f"the token server of {registry.host} gave no token", "check the user name and password"
            )
        return _Kept(f"Bearer {token}", time.monotonic() + max(life - _MARGIN_S, 1.0))

    async def _refused(self, response: httpx.Response, purpose: Purpose) -> OciError:
        """The error for what a token server answered; that it is not there says nothing of the artifact."""
        error = await self.error(response, purpose)
        if isinstance(error, NotFoundError):
            return RegistryError(
                f"{purpose.what}: the token server of {purpose.registry.host} answered 404 Not Found",
                "ask whoever runs this registry",
                response.status_code,
            )
        return error
