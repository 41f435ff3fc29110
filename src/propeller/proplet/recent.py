"""Task ids of which something was said before their start message came."""

import time
from collections import OrderedDict

_MOST = 1000


class Recent:
    """Ids, each for a while; the oldest are forgotten when there are too many."""

    def __init__(self, seconds: float) -> None:
        """``seconds``: how long an id is remembered."""
        self._seconds = seconds
        self._since: OrderedDict[str, float] = OrderedDict()

    def add(self, task_id: str) -> None:
        """Remember an id from now on."""
        self._since[task_id] = time.monotonic()
        self._since.move_to_end(task_id)
        if len(self._since) > _MOST:
            self._since.popitem(last=False)

    def take(self, task_id: str) -> bool:
        """Forget an id; whether it was remembered."""
        since = self._since.pop(task_id, None)
        return since is not None and time.monotonic() - since < self._seconds
