"""The coordinator as the manager uses it: rounds are configured there, clients' FL requests are forwarded, failures reported."""

import asyncio
from typing import Any

from propeller.errors import NotFoundError, RefusedError, UnavailableError
from propeller.process.background import BackgroundTasks
from propeller.process.http import Answer, ServiceClient, ServiceError, basic_authorization
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.protocol.rounds import (
    ChosenParticipants,
    Experiment,
    ParticipantFailure,
    ParticipantStage,
    RoundParticipants,
)
from propeller.protocol.task import Stage
from propeller.protocol.wire import MalformedMessageError, decode_trusted

log = get_logger("manager")

REPORT_DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Between attempts to report a failure to a coordinator that is away; after the last one, the round ends by its deadline."""

_MAX_CONCURRENT_REPORTS = 10
_FORWARD_TIMEOUT_S = 30.0


class CoordinatorClient:
    """Calls one coordinator; holds its connections."""

    def __init__(self, url: str, *, credentials: tuple[str, str] | None = None) -> None:
        """``credentials`` are the manager's own; forwarded requests carry the client's instead."""
        self._http = ServiceClient("coordinator", url)
        self._headers = {"Authorization": basic_authorization(*credentials)} if credentials else {}

    async def configure(self, experiment: Experiment) -> str | None:
        """Configure a round; repeating it changes nothing.

        Returns:
            The digest of its base model, by which participants may read it, if the coordinator knows it.

        Raises:
            ServiceError: the coordinator refuses or does not answer.
        """
        answer = await self._request("POST", "/experiments", json=experiment.to_json())
        try:
            digest = decode_trusted(answer.content).get("model_digest")
        except MalformedMessageError:  # coordinators of absmach/propeller say what they like
            return None
        return digest if isinstance(digest, str) else None

    async def propose_participants(self, round_id: str, chosen: ChosenParticipants) -> RoundParticipants:
        """Say whom to let take part in a round of an experiment, and hear who does; repeating it changes nothing.

        Raises:
            ServiceError: the coordinator refuses or does not answer; of kind ``NotFoundError`` if it has no such round.
        """
        body = chosen.model_dump(mode="json", exclude_none=True)
        answer = await self._request("POST", f"/rounds/{round_id}/participants", json=body)
        return RoundParticipants.decode(decode_trusted(answer.content))

    async def report_failure(self, round_id: str, failure: ParticipantFailure) -> None:
        """Report that no update is to be expected of a participant; repeating it changes nothing.

        Raises:
            ServiceError: the coordinator refuses or does not answer; of kind ``NotFoundError`` if it has no such round,
                or no such route, as those of absmach/propeller.
        """
        await self._request("POST", f"/rounds/{round_id}/failures", json=failure.model_dump())

    async def report_stage(self, round_id: str, stage: ParticipantStage) -> None:
        """Report what a participant does.

        Raises:
            ServiceError: as ``report_failure``.
        """
        await self._request("POST", f"/rounds/{round_id}/stages", json=stage.model_dump(mode="json"))

    async def is_collecting(self, round_id: str) -> bool:
        """Whether a round still waits for updates; assumed where the coordinator does not answer.

        A round may be over before its deadline: with enough updates, or when no more can come.
        """
        try:
            status = (await self._request("GET", f"/rounds/{round_id}/complete")).json()
        except (ServiceError, ValueError):
            return True
        # The answer of absmach/propeller's coordinator has no state.
        return not status.get("completed") and status.get("state") in {None, "created", "collecting"}

    async def forward(
        self,
        method: str,
        path: str,
        *,
        authorization: str | None,
        content: bytes | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        params: dict[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> Answer:
        """Forward a client's request with the client's credentials, and return the answer.

        Args:
            method: of HTTP.
            path: at the coordinator.
            authorization: the client's header.
            content: the body.
            content_type: of the body.
            content_encoding: of the body.
            params: the query.
            wait_s: how long the coordinator may hold the answer back, in seconds.

        Raises:
            RefusedError: the coordinator refuses the client's credentials.
            ServiceError: it refuses the request, does not answer or failed.
        """
        headers = {
            "Authorization": authorization,
            "Content-Type": content_type,
            "Content-Encoding": content_encoding,
        }
        try:
            return await self._http.request(
                method,
                path,
                content=content,
                params=params,
                headers={name: value for name, value in headers.items() if value},
                timeout=_FORWARD_TIMEOUT_S + wait_s,
            )
        except ServiceError as error:
            if issubclass(error.kind, RefusedError):
                raise error.kind(error.reason) from None
            raise

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _request(self, method: str, path: str, **options: Any) -> Answer:
        return await self._http.request(method, path, headers=self._headers, **options)


class RoundReporter:
    """Reports in the background how rounds' tasks go: of failures, the coordinator need not wait for updates that cannot come."""

    def __init__(self, coordinator: CoordinatorClient | None) -> None:
        """Without a coordinator there are no rounds, and nothing is reported."""
        self._coordinator = coordinator
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_REPORTS)
        self._background = BackgroundTasks("manager")

    def report(self, round_id: str, proplet_id: str, reason: str) -> None:
        """Report that no update is to be expected of a participant, and return at once."""
        if self._coordinator is None:
            return
        failure = ParticipantFailure(proplet_id=proplet_id, reason=reason)
        self._background.spawn(self._report(self._coordinator, round_id, failure))

    def report_stage(self, round_id: str, proplet_id: str, stage: Stage) -> None:
        """Report what a participant does, once, and return at once."""
        if self._coordinator is None:
            return
        said = ParticipantStage(proplet_id=proplet_id, stage=stage)
        self._background.spawn(self._report_stage(self._coordinator, round_id, said))

    async def close(self) -> None:
        """Stop reporting; what was not reported is after the next start (``Housekeeping.report_failures``)."""
        await self._background.close()

    async def _report(
        self, coordinator: CoordinatorClient, round_id: str, failure: ParticipantFailure
    ) -> None:
        line = log.bind(round_id=round_id, proplet_id=failure.proplet_id)

        async def attempt() -> None:
            async with self._slots:
                await coordinator.report_failure(round_id, failure)

        try:
            await retry(attempt, delays=REPORT_DELAYS_S, on=_is_away)
        except ServiceError as error:
            if issubclass(error.kind, NotFoundError):  # coordinators of absmach/propeller have no such route
                line.debug("coordinator takes no failures", reason=error.reason)
            else:
                line.warning("failure is not reported to the coordinator", reason=str(error))
        else:
            line.debug("failure reported to the coordinator", reason=failure.reason)

    async def _report_stage(
        self, coordinator: CoordinatorClient, round_id: str, stage: ParticipantStage
    ) -> None:
        try:
            async with self._slots:
                await coordinator.report_stage(round_id, stage)
        except ServiceError as error:  # the next stage is reported again
            log.debug("stage is not reported to the coordinator", round_id=round_id, reason=str(error))


def _is_away(error: BaseException) -> bool:
    return isinstance(error, ServiceError) and issubclass(error.kind, UnavailableError)
