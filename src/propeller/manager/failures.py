"""Failures of rounds' tasks on their way to the coordinator, which need not wait for updates that cannot come."""

import asyncio

from propeller.manager.coordinator import Coordinator
from propeller.process.background import BackgroundTasks
from propeller.process.http import ServiceError
from propeller.process.logs import get_logger
from propeller.protocol.rounds import ParticipantFailure

log = get_logger("manager")

DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Between tries while the coordinator does not answer or fails; then its round ends by the deadline."""

_AT_ONCE = 10


class Failures:
    """Reports failures in the background, so that whoever finds one waits for nobody."""

    def __init__(self, coordinator: Coordinator | None) -> None:
        """Without a coordinator there are no rounds, and nothing is reported."""
        self._coordinator = coordinator
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._background = BackgroundTasks("manager")

    def report(self, round_id: str, proplet_id: str, reason: str) -> None:
        """Tell the coordinator that no update is to be expected of a participant."""
        if self._coordinator is None:
            return
        failure = ParticipantFailure(proplet_id=proplet_id, reason=reason)
        self._background.spawn(self._report(self._coordinator, round_id, failure))

    async def close(self) -> None:
        """Stop reporting; ``Rounds.report_failures`` says after the next start what was not said."""
        await self._background.close()

    async def _report(self, coordinator: Coordinator, round_id: str, failure: ParticipantFailure) -> None:
        line = log.bind(round_id=round_id, proplet_id=failure.proplet_id)
        for delay in (*DELAYS_S, None):
            try:
                async with self._slots:
                    await coordinator.give_up(round_id, failure)
            except ServiceError as error:
                if error.status in {404, 405}:  # coordinators of absmach/propeller have no such route
                    line.debug("coordinator takes no failures", reason=error.reason)
                    return
                refused = error.status is not None and error.status < 500
                if refused or delay is None:
                    line.warning("failure is not reported to the coordinator", reason=str(error))
                    return
                await asyncio.sleep(delay)
            else:
                line.debug("failure reported to the coordinator", reason=failure.reason)
                return
