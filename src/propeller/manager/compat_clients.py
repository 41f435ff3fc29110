"""Which proplets are believed on the topics that they share, where a message names its sender and proves nothing.

The identity service says which clients are marked ``compat``. Its answer is kept for a short time, and asked for at most ten
times a second however many senders are invented. While identity is away nobody new is believed; those that it named before still
are, as the broker lets in nobody without identity, and cuts off at once whom identity revokes.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from propeller.errors import UnavailableError
from propeller.process.http import ServiceClient, ServiceError
from propeller.process.logs import get_logger
from propeller.protocol.topics import Channel

log = get_logger("manager")

FRESH_S = 5.0
"""For so long an answer holds for the clients in it."""

ASK_AGAIN_S = 0.1
"""An answer that lacks a client is this old at least before identity is asked anew."""


class CompatClients(Protocol):
    """Who may speak on shared topics."""

    async def includes(self, client_id: str, *, patient: bool = True) -> bool:
        """Whether a client may; one who is not ``patient`` takes a no that is a moment old.

        Raises:
            UnavailableError: that cannot be known now.
        """


class AnyClient:
    """Everyone: where the broker asks nobody who they are, no name means anything."""

    async def includes(self, client_id: str, *, patient: bool = True) -> bool:  # noqa: ARG002 - as ``CompatClients`` has it
        """True."""
        return True


class KnownCompatClients:
    """Those that the identity service names."""

    def __init__(
        self, identity: ServiceClient, channel: Channel, *, clock: Callable[[], float] = monotonic
    ) -> None:
        """``identity`` is asked with the manager's own credentials about ``channel``; ``clock`` counts seconds."""
        self._identity, self._channel, self._clock = identity, channel, clock
        self._known: frozenset[str] = frozenset()
        self._tried_at = float("-inf")
        self._asking = asyncio.Lock()

    async def includes(self, client_id: str, *, patient: bool = True) -> bool:
        """Whether identity knows this client as an enabled compat proplet of the channel.

        One that it has not named yet is asked about, at most each ``ASK_AGAIN_S`` seconds: who is ``patient`` waits for that.

        Raises:
            UnavailableError: identity does not answer, and has not named this client before.
        """
        if self._is_believed(client_id):
            return True
        try:
            await self._ask_again(client_id, patient=patient)
        except UnavailableError as error:
            if client_id not in self._known:
                raise
            log.warning(
                "identity is away, a compat proplet that it named before is believed", reason=str(error)
            )
        return client_id in self._known

    @property
    def _wait_s(self) -> float:
        """How long identity is not to be asked."""
        return self._tried_at + ASK_AGAIN_S - self._clock()

    def _is_believed(self, client_id: str) -> bool:
        """Whether identity has named a client, and was asked a moment ago, or did not answer then."""
        return client_id in self._known and self._clock() - self._tried_at < FRESH_S

    async def _ask_again(self, client_id: str, *, patient: bool) -> None:
        async with self._asking:
            if self._is_believed(client_id):
                return
            if self._wait_s > 0:
                if not patient:
                    return
                await asyncio.sleep(self._wait_s)
            self._tried_at = self._clock()
            params = {"domain_id": self._channel.domain_id, "channel_id": self._channel.channel_id}
            try:
                answer = await self._identity.request("GET", "/auth/compat", params=params)
                self._known = frozenset(map(str, answer.json()["clients"]))
            except (ServiceError, ValueError, TypeError, KeyError) as error:
                raise UnavailableError(f"identity does not say who is a compat proplet: {error}") from None
