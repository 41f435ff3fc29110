"""Asking the services over HTTP, and whether each answers where it should."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self

import httpx

from propeller.doctor.checks import CannotAskError, Finding, failed, passed
from propeller.doctor.machine import MAX_CLOCK_DIFFERENCE_S, clocks, listener_on
from propeller.doctor.target import Client, Observations, Target
from propeller.process.http import error_text, verify_for
from propeller.stack.standby import foreign_owners
from propeller.stack.state_folder import StateFolder

HTTP_TIMEOUT_S = 4.5
"""How long a service may take to answer, in seconds: less than a check may take, to say who it was."""

_MAX_BYTES = 1024 * 1024


class NoAnswerError(CannotAskError):
    """A service did not answer, or not with what was asked for; the text says where and why."""


class Asks(Protocol):
    """Asks services with GET."""

    async def get(self, url: str, who: Client | None = None, **options: Any) -> httpx.Response:
        """The answer to a GET; raises ``NoAnswerError`` if there is none."""

    async def get_object(self, url: str, who: Client | None = None, **options: Any) -> dict[str, Any]:
        """The JSON object that a GET gives; raises ``NoAnswerError`` if it gives none."""

    async def get_start(self, url: str, who: Client) -> tuple[int, bytes | None]:
        """The status of a GET and its body, ``None`` if that is more than is worth reading; raises as ``get``."""


class HttpClient:
    """An HTTP client for every service. A client's key goes only to a service that asks who calls."""

    def __init__(self, *urls: str) -> None:
        """``urls``: every address that will be asked."""
        self._http = httpx.AsyncClient(timeout=HTTP_TIMEOUT_S, trust_env=False, verify=verify_for(*urls))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def get(self, url: str, who: Client | None = None, **options: Any) -> httpx.Response:
        """The answer to a GET, whatever its status.

        Raises:
            NoAnswerError: there is none.
        """
        answer = await self._send(url, **options)
        if answer.status_code == httpx.codes.UNAUTHORIZED and who is not None:
            answer = await self._send(url, auth=(who.id, who.key), **options)
        return answer

    async def get_object(self, url: str, who: Client | None = None, **options: Any) -> dict[str, Any]:
        """The JSON object that a GET gives.

        Raises:
            NoAnswerError: there is no answer, or another.
        """
        return json_object(await self.get(url, who, **options), url)

    async def get_start(self, url: str, who: Client) -> tuple[int, bytes | None]:
        """The status of a GET and its body, ``None`` if that is more than is worth reading.

        Raises:
            NoAnswerError: there is no answer.
        """
        with explained_errors(url):
            answer = await self._open(url, None)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                await answer.aclose()
                answer = await self._open(url, (who.id, who.key))
            try:
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _MAX_BYTES:
                        return answer.status_code, None
                return answer.status_code, body
            finally:
                await answer.aclose()

    async def _open(self, url: str, auth: tuple[str, str] | None) -> httpx.Response:
        return await self._http.send(self._http.build_request("GET", url), auth=auth, stream=True)

    async def _send(self, url: str, **options: Any) -> httpx.Response:
        with explained_errors(url):
            return await self._http.get(url, **options)


def address_of(url: str) -> tuple[str, int]:
    """The host and port of an address."""
    parts = httpx.URL(url)
    return parts.host, parts.port or (443 if parts.scheme == "https" else 80)


@contextlib.contextmanager
def explained_errors(url: str) -> Iterator[None]:
    """Say in words why an address did not answer.

    Raises:
        NoAnswerError: it did not.
    """
    host, port = address_of(url)
    address = f"{host}:{port}"
    try:
        yield
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # httpx has no kind of error for it
            raise NoAnswerError(f"{address} shows a certificate that is not believed: {error}") from None
        raise NoAnswerError(f"nothing listens on {address}") from None
    except httpx.TimeoutException:
        text = f"{address} accepts connections but did not answer within {HTTP_TIMEOUT_S:g} s"
        raise NoAnswerError(text) from None
    except (httpx.RemoteProtocolError, httpx.ReadError):
        raise NoAnswerError(f"what listens on {address} does not speak HTTP") from None
    except httpx.TransportError as error:
        raise NoAnswerError(f"{address}: {str(error) or type(error).__name__}") from None


def json_object(answer: httpx.Response, url: str) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        NoAnswerError: it has none.
    """
    if not answer.is_success:
        raise NoAnswerError(f"{url} answered {answer.status_code}: {error_text(answer)}")
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswerError(f"{url} answered with something other than a JSON object")
    return found


_DATE_INTERVAL_S = 1.2
"""A little more than the second after which uvicorn renews the ``Date`` of its answers."""

_HEALTHY = frozenset({"ok", "pass"})


class ServiceChecks:
    """Asks each service for its health."""

    def __init__(self, target: Target, http: Asks, observed: Observations) -> None:
        self._target, self._http, self._observed = target, http, observed
        self._asked: dict[str, str] = {}

    async def service(self, name: str) -> list[Finding]:
        """A service with one address."""
        url = self._target.services[name]
        try:
            answer = await self._answer(name, f"{url}/health")
        except NoAnswerError as error:
            return [self._failed(name, error)]
        if _status(answer) not in _HEALTHY:
            return [self._foreign(name, url)]
        return [_damaged(name, answer) or passed(name, f"{url} answers")]

    async def identity(self) -> list[Finding]:
        """Identity, on its four ports."""
        for listener, url in self._target.identity.items():
            try:
                answer = await self._answer(f"identity ({listener})", f"{url}/health")
            except NoAnswerError as error:
                return [self._failed("identity", error)]
            if _status(answer) not in _HEALTHY:
                return [self._foreign("identity", url)]
            if (damaged := _damaged("identity", answer)) is not None:
                return [damaged]
            health = answer.json()
            if "broker" in health:
                self._observed.identity_disconnected = health["broker"] == "away"
            counts = (health.get("subscriptions"), health.get("max_subscriptions"))
            if all(isinstance(count, int) for count in counts):
                self._observed.subscriptions = counts
        return [passed("identity", f"{', '.join(self._target.identity.values())} answer")]

    async def clocks(self) -> list[Finding]:
        """The services' clocks beside this machine's.

        A server renews the time in its answers once a second: one that has just hung still tells that of before, and is asked again.
        """
        off = [name for name, ahead in self._observed.clocks.items() if abs(ahead) > MAX_CLOCK_DIFFERENCE_S]
        if off:
            await asyncio.sleep(_DATE_INTERVAL_S)
            with contextlib.suppress(NoAnswerError):  # its own check has said so, or the next doctor will
                await asyncio.gather(*(self._answer(name, self._asked[name]) for name in off))
        return clocks(self._observed)

    async def _answer(self, name: str, url: str) -> httpx.Response:
        self._asked[name] = url
        before = time.time()
        answer = await self._http.get(url)
        try:
            shown = parsedate_to_datetime(answer.headers["date"]).timestamp()
        except (KeyError, ValueError):
            return answer
        # The header has whole seconds: it is right anywhere in the second that it names.
        now = time.time()
        ahead = shown - now if shown > now else min(shown + 1 - before, 0)
        self._observed.clocks[name] = ahead
        return answer

    def _failed(self, name: str, error: NoAnswerError) -> Finding:
        folder = self._target.folder
        if folder is not None and (process := StateFolder(folder).running_process()) is not None:
            waits = foreign_owners(folder, process).get(name)
            if waits is not None:
                return failed(name, f"{error}; it is a {waits}", "end that process, or wait until it ends")
        return failed(name, str(error), self._target.advice.restart(name))

    def _foreign(self, name: str, url: str) -> Finding:
        detail = f"{url} is answered by something other than {name}"
        return failed(name, detail, self._target.advice.free_port(listener_on(*address_of(url))))


def _damaged(name: str, answer: httpx.Response) -> Finding | None:
    """What a service says of its database, if that is damaged."""
    said = answer.json().get("database")
    if said is None:
        return None
    detail, _, remedy = str(said).partition("; ")
    return failed(name, detail, remedy)


def _status(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("status")) if answer.is_success else ""
    except (ValueError, AttributeError, RecursionError):
        return ""
