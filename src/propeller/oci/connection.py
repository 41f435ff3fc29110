"""Requests to registries: authorization, redirects, timeouts, retries of transient faults, errors with a remedy."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import httpx

from propeller.oci.allowed import AllowedRegistries, origin_of
from propeller.oci.authorization import Authorizer, Purpose
from propeller.oci.errors import OciError, RegistryError, RegistryTimeoutError, RegistryUnreachableError
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.process.tls import add_stack_trust

T = TypeVar("T")
Body = Callable[[], AsyncIterator[bytes]]
"""Makes a request's body; called again for every try."""

log = get_logger("oci")

PIECE_BYTES = 64 * 1024
"""Of a blob, sent or read at a time."""

RETRY_DELAYS = (0.1, 0.3, 0.8)
"""Seconds between tries after a broken connection or a 429, 500, 502, 503 or 504."""

CONNECT_TIMEOUT_S = 10.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_ASK_OPERATOR = "ask whoever runs this registry"


class RegistryConnections:
    """HTTP connections to any number of registries; close them with ``aclose``."""

    def __init__(
        self,
        authorizer: Authorizer,
        *,
        idle_timeout: float,
        total_timeout: float,
        retry_delays: tuple[float, ...],
        allowed: AllowedRegistries | None = None,
    ) -> None:
        """``idle_timeout``: seconds without a byte; ``total_timeout``: seconds for a whole try.

        With ``allowed``, errors do not tell what is at an address: its details go to the log.
        """
        self._allowed = allowed
        self._authorizer = authorizer
        self._idle, self._total, self._delays = idle_timeout, total_timeout, retry_delays
        self._connect = min(idle_timeout, CONNECT_TIMEOUT_S)
        self._clients: dict[bool, httpx.AsyncClient] = {}

    async def aclose(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()

    async def with_retries(self, purpose: Purpose, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation that may be repeated until it succeeds, fails for good, or was tried often enough.

        Raises:
            OciError: with the cause and the remedy.
        """
        try:
            return await self._with_retries(purpose, operation)
        except (RegistryUnreachableError, RegistryTimeoutError, RegistryError) as error:
            if self._allowed is None:
                raise
            log.warning("registry cannot be reached", program=purpose.what, reason=str(error))
            raise RegistryUnreachableError(
                f"{purpose.what}: {purpose.registry.host} cannot be reached now",
                f"the {self._allowed.service}'s log says why",
            ) from None

    async def _with_retries(self, purpose: Purpose, operation: Callable[[], Awaitable[T]]) -> T:
        async def attempt() -> T:
            async with asyncio.timeout(self._total):
                return await operation()

        def log_failure(error: BaseException, delay_s: float) -> None:
            log.debug("asking the registry again", reason=str(error), seconds=delay_s)

        try:
            return await retry(attempt, delays=self._delays, on=_may_pass, failed=log_failure)
        except httpx.ConnectTimeout as error:
            raise RegistryUnreachableError(
                f"{purpose.what}: {_host(error, purpose)} took no connection within {self._connect:g} s",
                "check the registry's address and the network between",
            ) from None
        except (httpx.TimeoutException, TimeoutError) as error:
            limit = self._idle if isinstance(error, httpx.TimeoutException) else self._total
            raise RegistryTimeoutError(
                f"{purpose.what}: {_host(error, purpose)} did not answer within {limit:g} s",
                "check that the registry is up and not overloaded",
            ) from None
        except httpx.RequestError as error:
            raise _unreachable(purpose, error) from None
        except httpx.InvalidURL as error:
            raise RegistryUnreachableError(
                f"{purpose.what}: {purpose.registry.host} sent a wrong address: {error}", _ASK_OPERATOR
            ) from None

    @contextlib.asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        purpose: Purpose,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        allow: frozenset[int] = frozenset(),
    ) -> AsyncIterator[httpx.Response]:
        """Send one request; the block reads its answer, which is a success or has a status in ``allow``.

        ``url`` is a path of the registry, or an address it gave. Call it inside ``with_retries``.

        Raises:
            OciError: the registry answered with another status.
        """
        target = httpx.URL(purpose.registry.base_url).join(url)
        response = await self._send_authorized(method, target, purpose, headers or {}, body)
        try:
            if not response.is_success and response.status_code not in allow:
                raise await self._error_of(response, purpose)
            yield response
        finally:
            await response.aclose()

    async def _send_authorized(
        self,
        method: str,
        url: httpx.URL,
        purpose: Purpose,
        headers: Mapping[str, str],
        body: Body | None,
    ) -> httpx.Response:
        registry, scope = purpose.registry, purpose.scope
        origin = httpx.URL(registry.base_url)
        known = self._authorizer.cached_header(registry, scope) if _same_origin(url, origin) else None
        response = await self._follow_redirects(method, url, origin, headers, known, body)
        if response.status_code != httpx.codes.UNAUTHORIZED or not _same_origin(response.url, origin):
            return response
        challenge = ", ".join(response.headers.get_list("www-authenticate"))
        try:
            header = await self._authorizer.answer_challenge(self._client_for, purpose, challenge)
        except BaseException:
            await response.aclose()
            raise
        if header is None or header == known:
            return response
        await response.aclose()
        return await self._follow_redirects(method, url, origin, headers, header, body)

    async def _follow_redirects(
        self,
        method: str,
        url: httpx.URL,
        origin: httpx.URL,
        headers: Mapping[str, str],
        authorization: str | None,
        body: Body | None,
    ) -> httpx.Response:
        """Send, and follow redirects of what is read; the authorization goes to the registry alone."""
        for _ in range(_MAX_REDIRECTS):
            own = {"Authorization": authorization} if authorization and _same_origin(url, origin) else {}
            client = self._client_for(url)
            request = client.build_request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers, **own},
                content=body() if body else None,
            )
            response = await client.send(request, stream=True)
            if response.status_code not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            target = url.join(response.headers.get("location", ""))
            await response.aclose()
            if target.scheme not in {"https", url.scheme}:
                raise RegistryUnreachableError(
                    f"{url.host} redirects to {target.scheme}://{target.host}, which is not HTTPS",
                    _ASK_OPERATOR,
                )
            url = target
        raise RegistryUnreachableError(
            f"{origin.host} redirects more than {_MAX_REDIRECTS} times", _ASK_OPERATOR
        )

    async def _error_of(self, response: httpx.Response, purpose: Purpose) -> OciError:
        error = await self._authorizer.error_of(response, purpose)
        elsewhere = not _same_origin(response.url, httpx.URL(purpose.registry.base_url))
        if self._allowed is not None and elsewhere:  # what a store answers is no business of whoever asked
            return RegistryUnreachableError(error.cause, error.remedy)
        return error

    def _client_for(self, url: httpx.URL) -> httpx.AsyncClient:
        """The client for an address: the registry's, or one that it sent on to.

        Raises:
            OciError: it is none of those that may be asked.
        """
        if self._allowed is not None:
            self._allowed.check_address(url)
        return self._client(plain=url.scheme == "http")

    def _client(self, *, plain: bool) -> httpx.AsyncClient:
        """One client with and one without TLS; the proxies of the environment are for what is outside only."""
        if plain not in self._clients:
            own_transport = None if self._allowed is None else self._allowed.transport()
            needs_trust = not plain and own_transport is None
            self._clients[plain] = httpx.AsyncClient(
                timeout=httpx.Timeout(self._idle, connect=self._connect),
                limits=httpx.Limits(
                    max_connections=None
                ),  # one registry that hangs must not hold up the others
                trust_env=needs_trust,
                verify=needs_trust and add_stack_trust(httpx.create_ssl_context()),
                transport=own_transport,
            )
        return self._clients[plain]


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed at once: a connection broke, or the registry says that it is busy."""
    if isinstance(error, httpx.RequestError):
        return not isinstance(error, httpx.TimeoutException) and not _is_tls(error)
    return isinstance(error, RegistryError) and error.temporary


def _same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return origin_of(one) == origin_of(other)


def _unreachable(purpose: Purpose, error: httpx.RequestError) -> RegistryUnreachableError:
    text, host = str(error) or type(error).__name__, _host(error, purpose)
    remedy = "check the registry's address and that it is up"
    if _is_tls(error):
        remedy = f"if it speaks plain HTTP, write http://{host}; else check its certificate (PROPELLER_CA_CERT names the authority of a stack)"
    elif isinstance(error, httpx.RemoteProtocolError) and error.request.url.scheme == "http":
        remedy = f"if it speaks TLS, write https://{host}; else check that it is a registry"
    return RegistryUnreachableError(f"{purpose.what}: {host} cannot be reached: {text}", remedy)


def _host(error: Exception, purpose: Purpose) -> str:
    """Who was asked: the registry, or a token server or store that it names."""
    if isinstance(error, httpx.RequestError):
        with contextlib.suppress(RuntimeError):  # it does not know its request
            if not _same_origin(error.request.url, httpx.URL(purpose.registry.base_url)):
                return error.request.url.netloc.decode()
    return purpose.registry.host


def _is_tls(error: httpx.RequestError) -> bool:
    return isinstance(error, httpx.ConnectError) and "SSL" in str(error)
