"""HTTP calls from one service to another: credentials, retries of what may be repeated, errors with a cause."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self, TypeVar

import httpx

from propeller.errors import (
    ConflictError,
    InvalidError,
    NotAcceptableError,
    NotFoundError,
    PropellerError,
    RefusedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnprocessableError,
    UnsupportedTypeError,
)
from propeller.process.logs import get_logger
from propeller.process.retry import retry as try_again

log = get_logger("http")

T = TypeVar("T")

RETRY_DELAYS = (0.1, 0.4, 1.0, 1.5)
"""Seconds between tries after a connection fault or a 502, 503 or 504."""

_TEMPORARY_STATUSES = frozenset({None, 502, 503, 504})

KINDS: dict[int, type[PropellerError]] = {
    400: InvalidError,
    401: UnauthenticatedError,
    403: RefusedError,
    404: NotFoundError,
    406: NotAcceptableError,
    409: ConflictError,
    413: TooLargeError,
    415: UnsupportedTypeError,
    422: UnprocessableError,
    503: UnavailableError,
}
"""What a status means, as a kind of error; ``web`` answers each kind with this status."""


def kind_of_status(status: int | None) -> type[PropellerError]:
    """What a status means, as a kind of error; ``None`` if there was no answer."""
    if status is None or not 400 <= status < 500 or status in {408, 429}:
        return UnavailableError
    if status == 405:  # for a caller, a route without this method is none
        return NotFoundError
    return KINDS.get(status, InvalidError)


class ServiceError(PropellerError):
    """Another service refused or could not be reached.

    Attributes:
        service: its name, as an operator knows it.
        status: its HTTP status, or ``None`` if it did not answer.
        reason: the text of its error, for a person.
        kind: what the service meant, as a kind of error.
        temporary: whether the same request may succeed later: it is away, or does not take these credentials now, which
            a service that lost its own connection to identity says too.
    """

    def __init__(self, service: str, status: int | None, reason: str) -> None:
        self.service, self.status, self.reason = service, status, reason
        self.kind = kind_of_status(status)
        self.temporary = issubclass(self.kind, UnavailableError | RefusedError)
        answer = f"answered {status}" if status is not None else "cannot be reached"
        super().__init__(f"{service} {answer}: {reason}")


def needs_tls(*urls: str) -> bool:
    """Whether certificates must be loaded to call any of these: that takes 40 ms and some megabytes a client."""
    return any(not url.startswith("http://") for url in urls)


class ServiceClient:
    """An HTTP client for one service; keeps connections, close it with ``aclose`` or ``async with``."""

    def __init__(
        self,
        service: str,
        base_url: str,
        *,
        credentials: tuple[str, str] | None = None,
        timeout: float = 30.0,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        """``credentials`` are a client's id and key, sent as HTTP Basic; ``timeout`` in seconds a try."""
        self.service, self.base_url = service, base_url.rstrip("/")
        self._timeout, self._delays = timeout, retry_delays
        # trust_env off: the proxies of a person's shell are not for calls between services.
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            auth=credentials,
            timeout=timeout,
            trust_env=False,
            follow_redirects=False,
            verify=needs_tls(base_url),
        )

    async def request(self, method: str, path: str, *, retry: bool = True, **options: Any) -> httpx.Response:
        """Send a request and return its 2xx or 304 answer; ``options`` are httpx's (json, content, headers …).

        Faults of the connection and 502/503/504 are tried again, though not once ``timeout`` has gone by (a peer
        that hangs is not asked twice). Turn ``retry`` off for what must not happen twice, or cannot be sent twice
        (a body that is an iterator).

        Raises:
            ServiceError: with the status and the reason the service gave, or that it did not answer.
        """

        async def send() -> httpx.Response:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.RequestError as error:
                raise ServiceError(self.service, None, f"{self.base_url}: {_describe(error)}") from error
            if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
                return response
            raise ServiceError(self.service, response.status_code, error_text(response))

        return await self._try(send, path) if retry else await send()

    async def get(self, path: str, read: Callable[[httpx.Response], Awaitable[T]], **options: Any) -> T:
        """What ``read`` makes of a 2xx or 304 answer, of which the body has not come yet; tried again as ``request``.

        Raises:
            ServiceError: as ``request``; also if the answer breaks off while it is read.
        """

        async def send() -> T:
            try:
                async with self._http.stream("GET", path, **options) as response:
                    if response.is_success or is_not_modified(response):
                        return await read(response)
                    await response.aread()
            except httpx.RequestError as error:
                raise ServiceError(self.service, None, f"{self.base_url}: {_describe(error)}") from error
            raise ServiceError(self.service, response.status_code, error_text(response))

        return await self._try(send, path)

    @contextlib.asynccontextmanager
    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[httpx.Response]:
        """Send a request once, and give its 2xx answer, whose body is read as it comes.

        Raises:
            ServiceError: as ``request``; also if the answer breaks off while it is read.
        """
        try:
            async with self._http.stream(method, path, **options) as response:
                if not response.is_success:
                    await response.aread()
                    raise ServiceError(self.service, response.status_code, error_text(response))
                yield response
        except httpx.RequestError as error:
            raise ServiceError(self.service, None, f"{self.base_url}: {_describe(error)}") from error

    async def _try(self, send: Callable[[], Awaitable[T]], path: str) -> T:
        return await try_again(
            send,
            delays=self._delays,
            on=lambda error: isinstance(error, ServiceError) and error.status in _TEMPORARY_STATUSES,
            timeout_s=self._timeout,
            failed=lambda error, _delay: log.debug(
                "trying again", peer=self.service, path=path, reason=str(error)
            ),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()


def is_not_modified(response: httpx.Response) -> bool:
    """Whether an answer says that what the caller has (``If-None-Match``) is still right."""
    return response.status_code == httpx.codes.NOT_MODIFIED


def error_text(response: httpx.Response) -> str:
    """The reason in an error answer: its JSON ``error``, else the start of its text."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        return str(body["error"])
    return response.text.strip()[:500] or response.reason_phrase


def _describe(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__
