"""Asks identity what the proplets of the channel are called, so that their names are not what they say themselves.

It is asked periodically, and about a client that it has not named yet when that registers: no round and no heartbeat waits for it.
While it is away what it said last holds, also after a restart of the manager.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from time import monotonic

from propeller.errors import UnavailableError
from propeller.manager.fleet import Fleet
from propeller.manager.names import NamedClients
from propeller.process.background import BackgroundTasks
from propeller.process.http import ServiceClient, ServiceError, is_not_modified
from propeller.process.logs import get_logger
from propeller.protocol.topics import Channel

log = get_logger("manager")

ASK_EVERY_S = 10.0
"""Within so many seconds a new name or tag that identity was told of alone is known here."""

RETRY_S = 1.0
"""Between two questions while identity is away."""

ASK_AGAIN_S = 0.1
"""At least between two questions, however many clients register that it has not named."""

PATIENCE_S = 1.0
"""How long a registration waits for an answer; the name follows when identity answers later."""


class ClientNames:
    """Keeps the names and tags that a fleet has from identity up to date."""

    def __init__(
        self,
        identity: ServiceClient,
        channel: Channel,
        fleet: Fleet,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """``identity`` is asked with the manager's own credentials about ``channel``; ``clock`` counts seconds."""
        self._identity, self._channel, self._fleet, self._clock = identity, channel, fleet, clock
        self._version = ""
        self._asked_at = float("-inf")
        self._is_away = False
        self._asking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask periodically for the length of the block."""
        background = BackgroundTasks("manager")
        background.spawn_periodic(
            "asking identity for names",
            self._keep_up,
            lambda: RETRY_S if self._is_away else ASK_EVERY_S,
            at_once=True,
        )
        try:
            yield
        finally:
            await background.close()

    async def ask(self) -> None:
        """Have the fleet called as identity has it now.

        Raises:
            UnavailableError: identity does not say.
        """
        async with self._asking:
            await self._ask()

    async def ask_about(self, client_id: str) -> None:
        """Ask if identity has not named a client yet, which registers now, and wait for the answer unless identity is away."""
        if self._fleet.is_named(client_id) or self._is_away:
            return
        try:
            async with asyncio.timeout(PATIENCE_S), self._asking:
                if not self._fleet.is_named(client_id) and not self._is_away:
                    await self._ask()
        except (UnavailableError, TimeoutError) as error:
            self._note_away(str(error) or f"no answer within {PATIENCE_S:g} s")

    async def _keep_up(self) -> None:
        try:
            await self.ask()
        except UnavailableError as error:
            self._note_away(str(error))

    async def _ask(self) -> None:
        """Ask; the caller holds the lock."""
        await asyncio.sleep(self._asked_at + ASK_AGAIN_S - self._clock())
        self._asked_at = self._clock()
        params = {"domain_id": self._channel.domain_id, "channel_id": self._channel.channel_id}
        known = {"If-None-Match": self._version} if self._version else None
        try:
            answer = await self._identity.request("GET", "/auth/names", params=params, headers=known)
            if not is_not_modified(answer):
                await self._fleet.know(NamedClients.read(answer.json()))
                self._version = answer.headers.get("etag", "")
        except (ServiceError, ValueError) as error:
            raise UnavailableError(f"identity does not say what proplets are called: {error}") from None
        if self._is_away:
            self._is_away = False
            log.info("identity says what proplets are called again")

    def _note_away(self, reason: str) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning(
                "proplets are called as identity said last, and new ones by names made from their ids, until it answers",
                reason=reason,
            )
