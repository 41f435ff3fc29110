"""Asking the services over HTTP."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Self

import httpx

from propeller.doctor.checks import CannotAskError
from propeller.doctor.target import Client
from propeller.process.http import error_text, needs_tls

TIMEOUT_S = 4.5
"""How long a service may take to answer, in seconds: less than a check may take, to say who it was."""

_LARGEST = 1024 * 1024


class NoAnswerError(CannotAskError):
    """A service did not answer, or not with what was asked for; the text says where and why."""


class Questions:
    """An HTTP client for every service. A client's key goes only to a service that asks who calls."""

    def __init__(self, *urls: str) -> None:
        """``urls``: every address that will be asked."""
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=needs_tls(*urls))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def send(self, url: str, who: Client | None = None, **options: Any) -> httpx.Response:
        """The answer to a GET, whatever its status.

        Raises:
            NoAnswerError: there is none.
        """
        answer = await self._send(url, **options)
        if answer.status_code == httpx.codes.UNAUTHORIZED and who is not None:
            answer = await self._send(url, auth=(who.id, who.key), **options)
        return answer

    async def document(self, url: str, who: Client | None = None, **options: Any) -> dict[str, Any]:
        """The JSON object that a GET gives.

        Raises:
            NoAnswerError: there is no answer, or another.
        """
        return _document(await self.send(url, who, **options), url)

    async def start_of(self, url: str, who: Client) -> tuple[int, bytes | None]:
        """The status of a GET and its body, ``None`` if that is more than is worth reading.

        Raises:
            NoAnswerError: there is no answer.
        """
        with _explained(url):
            answer = await self._begin(url, None)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                await answer.aclose()
                answer = await self._begin(url, (who.id, who.key))
            try:
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _LARGEST:
                        return answer.status_code, None
                return answer.status_code, body
            finally:
                await answer.aclose()

    async def _begin(self, url: str, auth: tuple[str, str] | None) -> httpx.Response:
        return await self._http.send(self._http.build_request("GET", url), auth=auth, stream=True)

    async def _send(self, url: str, **options: Any) -> httpx.Response:
        with _explained(url):
            return await self._http.get(url, **options)


def place_of(url: str) -> tuple[str, int]:
    """The host and port of an address."""
    parts = httpx.URL(url)
    return parts.host, parts.port or (443 if parts.scheme == "https" else 80)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    host, port = place_of(url)
    place = f"{host}:{port}"
    try:
        yield
    except httpx.ConnectError:
        raise NoAnswerError(f"nothing listens on {place}") from None
    except httpx.TimeoutException:
        text = f"{place} takes connections but gave no answer within {TIMEOUT_S:g} s"
        raise NoAnswerError(text) from None
    except (httpx.RemoteProtocolError, httpx.ReadError):
        raise NoAnswerError(f"what listens on {place} does not speak HTTP") from None
    except httpx.TransportError as error:
        raise NoAnswerError(f"{place}: {str(error) or type(error).__name__}") from None


def _document(answer: httpx.Response, url: str) -> dict[str, Any]:
    if not answer.is_success:
        raise NoAnswerError(f"{url} answered {answer.status_code}: {error_text(answer)}")
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswerError(f"{url} answered with something that is no JSON object")
    return found
