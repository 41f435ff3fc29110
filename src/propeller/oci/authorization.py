"""Answers to a registry's ``WWW-Authenticate``: HTTP Basic, a given token, or the token flow of the distribution project.

The flow (distribution, "Token Authentication Specification"): a 401 names a token server, a service and a scope; the
token server is asked with the login of that registry, or with none for what is public, and its token is kept until
shortly before it expires.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from propeller.oci.credentials import Login, Logins, Token
from propeller.oci.errors import UnauthorizedError, from_status
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

    def __init__(self, logins: Logins) -> None:
        self._logins = logins
        self._kept: dict[tuple[str, Scope], _Kept] = {}

    def known(self, registry: Registry, scope: Scope) -> str | None:
        """The header to send at once, if there is one."""
        credential = self._logins.get(str(registry))
        if isinstance(credential, Token):
            return f"Bearer {credential.value}"
        kept = self._kept.get((registry.base_url, scope))
        return kept.header if kept is not None and kept.until > time.monotonic() else None

    async def answer(
        self, http: httpx.AsyncClient, registry: Registry, scope: Scope, header: str
    ) -> str | None:
        """The header that a 401's ``WWW-Authenticate`` asks for; ``None`` if nothing here can answer it.

        Raises:
            OciError: the token server refused, or must not be asked.
        """
        asked = challenges(header)
        credential = self._logins.get(str(registry))
        if isinstance(credential, Token):
            return None  # it was sent already
        if "bearer" in asked:
            kept = await self._token(http, registry, scope, asked["bearer"], credential)
        elif "basic" in asked and credential is not None:
            kept = _Kept(credential.basic, float("inf"))
        else:
            return None
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[registry.base_url, scope] = kept
        return kept.header

    async def _token(
        self,
        http: httpx.AsyncClient,
        registry: Registry,
        scope: Scope,
        challenge: Mapping[str, str],
        login: Login | None,
    ) -> _Kept:
        realm = httpx.URL(challenge.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and registry.plain_http):
            raise UnauthorizedError(
                f"{registry.host} names the token server {str(realm)[:200]!r}, which is not HTTPS",
                "no credentials were sent; ask whoever runs this registry",
            )
        query = {"scope": challenge.get("scope") or str(scope)}
        if service := challenge.get("service"):
            query["service"] = service
        headers = {"Authorization": login.basic} if login else {}
        response = await http.get(realm.copy_merge_params(query), headers=headers)
        if not response.is_success:
            raise from_status(response.status_code, f"token for {scope}", registry.host)
        try:
            document = response.json()
            token = document.get("token") or document.get("access_token")
            life = float(document.get("expires_in") or _DEFAULT_LIFE_S)
        except (ValueError, TypeError, AttributeError):
            token, life = None, 0.0
        if not isinstance(token, str) or not token:
            raise UnauthorizedError(
                f"the token server of {registry.host} gave no token", "check the user name and password"
            )
        return _Kept(f"Bearer {token}", time.monotonic() + max(life - _MARGIN_S, 1.0))
