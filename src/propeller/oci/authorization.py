"""Credentials in requests to a registry: HTTP Basic, a given token, or the token flow of the distribution project.

The flow (distribution, "Token Authentication Specification"): a 401 names a token server, a service and a scope; the
token server is asked with the login of that registry, or with none for what is public, and its token is kept until
shortly before it expires.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
from cachetools import TLRUCache

from propeller.oci.credentials import Login, Logins, Token
from propeller.oci.errors import (
    LOGIN_HELP,
    ArtifactNotFoundError,
    OciError,
    RegistryError,
    RegistryLoginError,
)
from propeller.oci.reference import Registry
from propeller.oci.responses import error_of, insufficient_scope, read_document

_CHALLENGE = re.compile(r'([A-Za-z]+)\s+((?:[A-Za-z_]+=(?:"[^"]*"|[^\s",]+)\s*,?\s*)+)')
_PARAMETER = re.compile(r'([A-Za-z_]+)=(?:"([^"]*)"|([^\s",]+))')
_DEFAULT_LIFE_S, _MARGIN_S = 60.0, 10.0
"""How long a token lives that does not say it, and how long before its end it is not used any more, in seconds."""

_MAX_CACHED_HEADERS = 1000

ClientFor = Callable[[httpx.URL], httpx.AsyncClient]
"""Gives the client for an address that a registry named; raises ``OciError`` for one that must not be asked."""


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
class _Header:
    value: str = field(repr=False)
    expires: float


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """The challenges in ``WWW-Authenticate`` by scheme in lower case, each with its parameters."""
    return {
        scheme.lower(): {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(text)}
        for scheme, text in _CHALLENGE.findall(header)
    }


class Authorizer:
    """Finds the ``Authorization`` header for a request to a registry, and caches it by registry and scope.

    A credential is for one registry: it is sent to that host, and as the token flow needs it to the token server
    that this host names (over HTTPS unless the registry itself is plain HTTP).
    """

    def __init__(
        self, logins: Logins, login_help: str = LOGIN_HELP, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``login_help`` tells a person how to give a login (``errors.LOGIN_HELP``); ``clock`` counts seconds."""
        self._logins, self._login_help, self._clock = logins, login_help, clock
        self._headers: TLRUCache[tuple[str, Scope], _Header] = TLRUCache(
            _MAX_CACHED_HEADERS, lambda _key, header, _now: header.expires, clock
        )

    def cached_header(self, registry: Registry, scope: Scope) -> str | None:
        """The header to send before the registry asks for it, if there is one."""
        credential = self._logins.get(str(registry))
        if isinstance(credential, Token):
            return f"Bearer {credential.value}"
        header = self._headers.get((registry.base_url, scope))
        return header.value if header is not None else None

    async def answer_challenge(self, client_for: ClientFor, purpose: Purpose, challenge: str) -> str | None:
        """The header that a 401 asks for in its ``WWW-Authenticate``; ``None`` if there is no login for it.

        Raises:
            OciError: the token server refused, or must not be asked.
        """
        asked = parse_challenges(challenge)
        credential = self._logins.get(str(purpose.registry))
        if isinstance(credential, Token):
            return None  # it was sent already
        if "bearer" in asked:
            header = await self._fetch_token(client_for, purpose, asked["bearer"], credential)
        elif "basic" in asked and credential is not None:
            header = _Header(credential.basic, float("inf"))
        else:
            return None
        self._headers[purpose.registry.base_url, purpose.scope] = header
        return header.value

    async def error_of(self, response: httpx.Response, purpose: Purpose) -> OciError:
        """The error for a registry's answer that is not a success."""
        host = purpose.registry.host
        login_help = self._login_help.replace("{host}", host).replace("{registry}", str(purpose.registry))
        if response.status_code == httpx.codes.UNAUTHORIZED:
            asked = parse_challenges(", ".join(response.headers.get_list("www-authenticate")))
            if asked.get("bearer", {}).get("error") == "insufficient_scope":
                return await insufficient_scope(response, purpose.what, host, login_help)
        return await error_of(response, purpose.what, host, login_help)

    async def _fetch_token(
        self, client_for: ClientFor, purpose: Purpose, challenge: Mapping[str, str], login: Login | None
    ) -> _Header:
        registry = purpose.registry
        realm = httpx.URL(challenge.get("realm", ""))
        schemes = {"https", "http"} if registry.plain_http else {"https"}
        if realm.scheme not in schemes or not realm.host:
            raise RegistryLoginError(
                f"{registry.host} names the token server {str(realm)[:200]!r}, which is not HTTPS",
                "no credentials were sent; ask whoever runs this registry",
            )
        query = {"scope": challenge.get("scope") or str(purpose.scope)}
        if service := challenge.get("service"):
            query["service"] = service
        headers = {"Authorization": login.basic} if login else {}
        async with client_for(realm).stream(
            "GET", realm.copy_merge_params(query), headers=headers
        ) as response:
            if not response.is_success:
                raise await self._token_error(response, purpose)
            text = await read_document(response, f"the token server of {registry.host}")
        try:
            document = json.loads(text)
            token = document.get("token") or document.get("access_token")
            life = float(document.get("expires_in") or _DEFAULT_LIFE_S)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            token, life = None, 0.0
        if not math.isfinite(life):
            life = _DEFAULT_LIFE_S
        if not isinstance(token, str) or not token:
            raise RegistryLoginError(
                f"the token server of {registry.host} gave no token", "check the user name and password"
            )
        return _Header(f"Bearer {token}", self._clock() + max(life - _MARGIN_S, 1.0))

    async def _token_error(self, response: httpx.Response, purpose: Purpose) -> OciError:
        """The error for a token server's answer; one that is not there says nothing about the artifact."""
        error = await self.error_of(response, purpose)
        if isinstance(error, ArtifactNotFoundError):
            return RegistryError(
                f"{purpose.what}: the token server of {purpose.registry.host} answered 404 Not Found",
                "ask whoever runs this registry",
                temporary=False,
            )
        return error
