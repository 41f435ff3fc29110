"""HTTP calls from one service to another: credentials, retries of what may be repeated, errors with a cause."""

import base64
import contextlib
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

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
from propeller.process.http_connection import Answer, HttpClient, HttpError
from propeller.process.logs import get_logger
from propeller.process.retry import retry as try_again
from propeller.process.tls import stack_trust
from propeller.protocol.task import encode_json

__all__ = [
    "Answer",
    "ServiceClient",
    "ServiceError",
    "UnreadableAnswerError",
    "basic_authorization",
    "error_text",
    "is_not_modified",
    "kind_of_status",
    "verify_for",
]

log = get_logger("http")

T = TypeVar("T")

RETRY_DELAYS = (0.1, 0.4, 1.0, 1.5)
"""Seconds between tries after a connection fault or a 429, 502, 503 or 504."""

_MAX_REASON = 8000
"""Characters of an error that are told on: they are in answers, logs and databases then."""

_TEMPORARY_STATUSES = frozenset({None, 429, 502, 503, 504})

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
        explained: whether its answer, if there was one, has the error as services of this project write it.
    """

    def __init__(self, service: str, status: int | None, reason: str, *, explained: bool = True) -> None:
        self.service, self.status, self.reason, self.explained = service, status, reason, explained
        self.kind = kind_of_status(status)
        self.temporary = issubclass(self.kind, UnavailableError | RefusedError)
        answer = f"answered {status}" if status is not None else "cannot be reached"
        super().__init__(f"{service} {answer}: {reason}")


class UnreadableAnswerError(ServiceError):
    """Another service answered what cannot be read: it is of another kind or version, or something in between answers for it.

    It may pass, as an answer of what is in between does; where it does not, it is no use to ask for ever.
    """

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(service, None, reason)
        self.args = (f"{service}: {reason}",)


def verify_for(*urls: str, ca_cert: Path | None = None) -> ssl.SSLContext | bool:
    """What httpx is given as ``verify`` to call these; loading certificates takes 40 ms and some megabytes, so without need there are none.

    Args:
        urls: the services.
        ca_cert: whose certificates they have; else as ``tls.stack_trust``, or what systems trust.

    Raises:
        StartError: the file cannot be used.
    """
    if all(url.startswith("http://") for url in urls):
        return False
    return stack_trust(ca_cert) or True


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
        patience_s: float | None = None,
    ) -> None:
        """No request is sent yet.

        Args:
            service: its name, as an operator knows it.
            base_url: where it is.
            credentials: a client's id and key, sent as HTTP Basic.
            timeout: of a try, in seconds.
            retry_delays: between tries, in seconds, at most.
            patience_s: no new try begins when so many seconds have gone by, the last delay over and over until then; ``None``:
                ``timeout``, and as many tries as there are delays.
        """
        self.service, self.base_url = service, base_url.rstrip("/")
        self._timeout, self._delays, self._patience_s = timeout, retry_delays, patience_s
        self._http = HttpClient(
            self.base_url,
            timeout_s=timeout,
            authorization=basic_authorization(*credentials) if credentials else None,
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        json: Any = None,
        timeout: float | None = None,
        retry: bool = True,
    ) -> Answer:
        """Send a request and return its 2xx or 304 answer.

        Faults of the connection and 502/503/504 are tried again, though not once the client's ``timeout`` or ``patience_s`` has gone
        by (a peer that hangs is not asked twice).

        Args:
            method: of HTTP.
            path: below the client's base URL.
            params: the query.
            headers: beside the client's credentials, or in their place.
            content: the body.
            json: a body to be sent as JSON.
            timeout: the longest silence of the peer in seconds, if it is not the client's.
            retry: off for what must not happen twice, or cannot be sent twice (a body that is an iterator).

        Raises:
            ServiceError: with the status and the reason the service gave, or that it did not answer.
        """
        sent = dict(headers or {})
        if json is not None:
            content = encode_json(json)
            sent["Content-Type"] = "application/json"

        async def send() -> Answer:
            async with self._exchange(method, path, params, sent, content, timeout) as answer:
                await answer.aread()
            if answer.is_success or is_not_modified(answer):
                return answer
            raise _refusal(self.service, answer)

        return await self._try(send, path) if retry else await send()

    async def get(
        self,
        path: str,
        read: Callable[[Answer], Awaitable[T]],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """What ``read`` makes of a 2xx or 304 answer, of which the body has not come yet; tried again as ``request``.

        Raises:
            ServiceError: as ``request``; also if the answer breaks off while it is read.
        """

        async def send() -> T:
            async with self._exchange("GET", path, None, headers, None, None) as answer:
                if answer.is_success or is_not_modified(answer):
                    return await read(answer)
                await answer.aread()
            raise _refusal(self.service, answer)

        return await self._try(send, path)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
    ) -> AsyncIterator[Answer]:
        """Send a request once, and give its 2xx answer, whose body is read as it comes.

        Raises:
            ServiceError: as ``request``; also if the answer breaks off while it is read.
        """
        async with self._exchange(method, path, None, headers, content, None) as answer:
            if not answer.is_success:
                await answer.aread()
                raise _refusal(self.service, answer)
            yield answer

    @contextlib.asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        content: bytes | AsyncIterable[bytes] | None,
        timeout: float | None,
    ) -> AsyncIterator[Answer]:
        try:
            async with self._http.exchange(
                method, path, params=params, headers=headers, content=content, timeout_s=timeout
            ) as answer:
                yield answer
        except HttpError as error:
            raise ServiceError(self.service, None, f"{self.base_url}: {error}") from error

    async def _try(self, send: Callable[[], Awaitable[T]], path: str) -> T:
        return await try_again(
            send,
            delays=self._delays,
            on=lambda error: isinstance(error, ServiceError) and error.status in _TEMPORARY_STATUSES,
            forever=self._patience_s is not None,
            timeout_s=self._patience_s or self._timeout,
            spread=self._patience_s is not None,
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


class HttpAnswer(Protocol):
    """What is looked at of an answer, of whichever client."""

    @property
    def status_code(self) -> int: ...

    @property
    def reason_phrase(self) -> str: ...

    @property
    def text(self) -> str: ...

    def json(self) -> Any: ...


def _refusal(service: str, answer: Answer) -> ServiceError:
    """What an answer that has been read is, as an error."""
    explained = _error_of(answer) is not None
    return ServiceError(service, answer.status_code, error_text(answer), explained=explained)


def basic_authorization(name: str, password: str) -> str:
    """The ``Authorization`` header of HTTP Basic."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def is_not_modified(answer: HttpAnswer) -> bool:
    """Whether an answer says that what the caller has (``If-None-Match``) is still right."""
    return answer.status_code == 304


def error_text(answer: HttpAnswer) -> str:
    """The reason in an error answer: its JSON ``error``, of which a peer may send any length, else the start of its text."""
    error = _error_of(answer)
    if error is None:
        return answer.text.strip()[:500] or answer.reason_phrase
    return error if len(error) <= _MAX_REASON else f"{error[:_MAX_REASON]}…"


def _error_of(answer: HttpAnswer) -> str | None:
    """The JSON ``error`` of an answer, which services of this project have in each that is one; of a registry its first ``errors``."""
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    if error is None and isinstance(body, dict):  # as the OCI distribution specification has them
        match body.get("errors"):
            case [{"message": message}, *_]:
                error = message
    return error if isinstance(error, str) else None
