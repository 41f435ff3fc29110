"""The coordinator as the manager uses it: rounds are configured there, FL requests of clients go through to it."""

from typing import Any

import httpx

from propeller.errors import UnavailableError
from propeller.process.http import ServiceClient, ServiceError
from propeller.protocol.rounds import Experiment, ParticipantFailure


class Coordinator:
    """One coordinator; holds its connections."""

    def __init__(self, url: str, *, credentials: tuple[str, str] | None = None) -> None:
        """``credentials`` are the manager's own; requests of clients go with the client's."""
        self._http = ServiceClient("coordinator", url)
        self._auth = httpx.BasicAuth(*credentials) if credentials else None

    async def configure(self, experiment: Experiment) -> None:
        """Tell of a round; the same one again changes nothing.

        Raises:
            ServiceError: it refuses or does not answer.
        """
        await self._tell("/experiments", experiment.to_json())

    async def give_up(self, round_id: str, failure: ParticipantFailure) -> None:
        """Tell that no update is to be expected of a participant; again, it changes nothing.

        Raises:
            ServiceError: it refuses (404 if it has no such route or round) or does not answer.
        """
        await self._tell(f"/rounds/{round_id}/failures", failure.model_dump())

    async def collects(self, round_id: str) -> bool:
        """Whether a round still waits for updates; taken to be so where the coordinator does not say.

        It may be over before its deadline: with enough updates, or when none can come any more.
        """
        try:
            status = (await self._ask("GET", f"/rounds/{round_id}/complete")).json()
        except (ServiceError, ValueError):
            return True
        # absmach/propeller's has no state.
        return not status.get("completed") and status.get("state") in {None, "created", "collecting"}

    async def _tell(self, path: str, body: dict[str, Any]) -> None:
        await self._ask("POST", path, json=body)

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        if self._auth:
            options["auth"] = self._auth
        return await self._http.request(method, path, **options)

    async def forward(
        self,
        method: str,
        path: str,
        *,
        authorization: str | None,
        content: bytes | None = None,
        content_type: str | None = None,
        params: dict[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> httpx.Response:
        """Pass a client's request on, in the client's name, and return the answer.

        Raises:
            PropellerError: the coordinator's refusal, as the same kind of error.
            ServiceError: it does not answer or failed.
        """
        headers = {"Authorization": authorization, "Content-Type": content_type}
        try:
            return await self._http.request(
                method,
                path,
                content=content,
                params=params,
                headers={name: value for name, value in headers.items() if value},
                timeout=timeout_s,
            )
        except ServiceError as error:
            if issubclass(error.kind, UnavailableError):
                raise
            raise error.kind(error.reason) from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
