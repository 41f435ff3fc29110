"""Refused messages in the log: a line a sender and a while, however many it sends."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from cachetools import TTLCache

MAX_SENDERS = 1000
"""Of whom it is remembered that a line tells of them; of those beyond, the ones that were longest ago are told of again."""

QUIET_S = 60.0
"""For so long after a line about a sender its further messages are only counted."""

_MAX_LOGGED_CHARACTERS = 500


class Log(Protocol):
    """What writes the lines (``process.logs``)."""

    def warning(self, event: str, **fields: Any) -> None:
        """Write one."""


class Refusals:
    """Refused messages of one kind."""

    def __init__(self, event: str, log: Log, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``event`` is the text of the lines, ``clock`` counts seconds."""
        self._event, self._log = event, log
        self._told: TTLCache[str, bool] = TTLCache(MAX_SENDERS, QUIET_S, timer=clock)
        self.count = 0
        """How many there were."""

    def log(self, sender: str | None, topic: str, reason: str, **fields: Any) -> None:
        """Count a refused message, and write why unless a line of the last minute tells of this sender.

        Args:
            sender: who sent it, as the topic says; ``None`` on a topic that is shared, which is then told of as a whole.
            topic: of the message.
            reason: why it is refused.
            fields: more to write down.
        """
        self.count += 1
        key = sender or topic
        if key in self._told:
            return
        self._told[key] = True
        self._log.warning(
            self._event,
            topic=topic[:_MAX_LOGGED_CHARACTERS],
            sender=sender,
            reason=reason[:_MAX_LOGGED_CHARACTERS],
            refused=self.count,
            **fields,
        )
