"""Requests of the services of a stack, with errors that say what to do."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

import httpx

from propeller.errors import PropellerError, UnavailableError
from propeller.process.http import error_text, kind_of_status
from propeller.sdk.addresses import Login
from propeller.sdk.transport import EventStream, Transport, Upload


class Connection:
    """The services of one stack, by name.

    Attributes:
        urls: where they are.
        stack: ``stack.json``, if it was read from there; else empty.
        transport: how requests are sent.
        login: the user who calls; ``None``: whoever the services take the caller for.
    """

    def __init__(
        self, urls: Mapping[str, str], transport: Transport, login: Login | None, stack: Mapping[str, Any]
    ) -> None:
        """The services at ``urls``, called by ``login``."""
        self.urls, self.stack, self.transport = dict(urls), dict(stack), transport
        self.login = login

    def as_user(self, login: Login | None) -> "Connection":
        """The same services, called by a user; by whoever calls them anyway if that is ``None``."""
        return self if login is None else Connection(self.urls, self.transport, login, self.stack)

    async def ask(self, method: str, service: str, path: str, **options: Any) -> Any:
        """Send a request; the JSON of its answer.

        Raises:
            PropellerError: of the kind that the answer's status means, with the reason that the service gave;
                ``UnavailableError`` if it did not answer.
        """
        answer = await self.send(method, service, path, **options)
        try:
            return answer.json()
        except ValueError:
            url = f"{self.urls[service]}{path}"
            raise PropellerError(f"{method} {url}: the answer is not JSON; is that the {service}?") from None

    async def send(self, method: str, service: str, path: str, **options: Any) -> httpx.Response:
        """Send a request; its answer, which is a good one. Raises as ``ask`` does."""
        url, headers = f"{self.urls[service]}{path}", options.pop("headers", {})
        if self.login is not None:
            options["auth"] = None  # the transport's own: of whoever else calls

        async def send() -> httpx.Response:
            return await self.transport.send(
                method, url, headers={**headers, **self._authorization()}, **options
            )

        return await self._sent(send, method, url)

    async def upload(
        self, service: str, path: str, content: Upload, *, headers: Mapping[str, str], **options: Any
    ) -> Any:
        """Send a file with ``POST``; the JSON of the answer. Raises as ``ask`` does."""
        url = f"{self.urls[service]}{path}"

        async def send() -> httpx.Response:
            return await self.transport.upload(
                url, content, headers={**headers, **self._authorization()}, **options
            )

        return (await self._sent(send, "POST", url)).json()

    async def download(
        self, service: str, path: str, content: BinaryIO, *, headers: Mapping[str, str], **options: Any
    ) -> httpx.Response:
        """Send ``GET``; the answer's body is written to ``content``. Raises as ``ask`` does."""
        url = f"{self.urls[service]}{path}"

        async def send() -> httpx.Response:
            return await self.transport.download(
                url, content, headers={**headers, **self._authorization()}, **options
            )

        return await self._sent(send, "GET", url)

    async def _sent(
        self, send: Callable[[], Awaitable[httpx.Response]], method: str, url: str
    ) -> httpx.Response:
        try:
            await self._log_in()
            answer = await send()
            if await self._may_try_again(answer):
                answer = await send()
        except httpx.TransportError as error:
            raise _unreachable(method, url, error) from None
        _check(answer, method, url)
        return answer

    @asynccontextmanager
    async def stream(
        self, service: str, path: str, *, headers: Mapping[str, str], timeout: float
    ) -> AsyncIterator[EventStream]:
        """Server-sent events for the length of the block; ``timeout`` is how long one may take, in seconds.

        Raises:
            PropellerError: as ``ask``; also inside the block, if the connection breaks.
        """
        url = f"{self.urls[service]}{path}"
        try:
            await self._log_in()
            sent = {
                "Accept": "text/event-stream",
                "Cache-Control": "no-store",
                **headers,
                **self._authorization(),
            }
            async with self.transport.stream(url, headers=sent, timeout=timeout) as stream:
                if not await self._may_try_again(stream.answer):
                    _check(stream.answer, "GET", url)
                    yield stream
                    return
            sent |= self._authorization()
            async with self.transport.stream(url, headers=sent, timeout=timeout) as stream:
                _check(stream.answer, "GET", url)
                yield stream
        except httpx.TransportError as error:
            raise _unreachable("GET", url, error) from None

    def _authorization(self) -> dict[str, str]:
        return {} if self.login is None else self.login.headers()

    async def _may_try_again(self, answer: httpx.Response) -> bool:
        """Whether the service does not take the token any more, and there is a new one now."""
        if answer.status_code != httpx.codes.UNAUTHORIZED or self.login is None:
            return False
        await self._renew(self.login)
        return True

    async def _log_in(self) -> None:
        """Before the first request: without a token it may be answered as one of somebody else, the operator of this machine."""
        if self.login is not None and not self.login.headers():
            await self._renew(self.login)

    async def _renew(self, login: Login) -> None:
        told = await login.renew(self.transport)
        if told is None:
            return
        if told.status_code == httpx.codes.UNAUTHORIZED:
            raise kind_of_status(told.status_code)(
                f"user {login.user!r} cannot log in at {login.identity}: {error_text(told)}"
            )
        _check(told, "POST", f"{login.identity}/users/tokens/issue")


def _check(answer: httpx.Response, method: str, url: str) -> None:
    if not answer.is_success:
        reason = f"{method} {url} answered {answer.status_code}: {error_text(answer)}"
        raise kind_of_status(answer.status_code)(reason)


def _unreachable(method: str, url: str, error: httpx.TransportError) -> PropellerError:
    what = (
        "no answer in time"
        if isinstance(error, httpx.TimeoutException)
        else str(error) or type(error).__name__
    )
    remedy = "is the stack running?"
    if "CERTIFICATE_VERIFY_FAILED" in what:  # httpx has no kind of error for it
        remedy = (
            "if it is a stack's own, name its authority: --ca FILE, PROPELLER_CA_CERT, or in Python ca_cert="
        )
    elif isinstance(error, httpx.RemoteProtocolError) and url.startswith("http://"):
        remedy = "if it speaks TLS, write https://"
    return UnavailableError(f"{method} {url}: {what}; {remedy}")
