"""One run for two tasks that ask for the same in a round.

A manager of absmach/propeller starts each round twice where the broker delivers a message once a subscription, with tasks
of other ids. The second one has the result of the first: its program does not run, and its update is not sent, again.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from propeller.process.files import write_durably
from propeller.process.logs import get_logger
from propeller.protocol.task import TaskResult, TaskStart
from propeller.protocol.wire import MalformedMessageError

log = get_logger("proplet")

SAME_START_S = 30.0
"""For how long after its start a task's result is that of a second one: a person who uses a round id again is slower."""

MAX_KEPT = 16
"""Results on the disk, the newest; one has at most some megabytes."""


class RoundResults:
    """Results of rounds' tasks; they outlive a restart of the proplet."""

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``, which is made with the first one."""
        self._folder = folder
        self._running: dict[str, asyncio.Future[TaskResult]] = {}

    async def once(self, start: TaskStart, work: Callable[[], Awaitable[TaskResult]]) -> TaskResult:
        """What a task comes to: by ``work``, or as another one did that asks for the same.

        It waits for one that runs. If that fails, so does this; if that is stopped, this runs. After one that has failed it
        runs, too, as nothing came of the other.

        Raises:
            Exception: what ``work`` raised.
        """
        key = _key(start)
        while (running := self._running.get(key)) is not None:
            log.info("the same task of this round runs already: its result is this one's too")
            await asyncio.wait([running])
            if not running.cancelled():
                return _of(running.result(), start.id)
        ended = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            result = await self._kept_or_new(key, start.id, work)
        except asyncio.CancelledError:
            ended.cancel()
            raise
        except Exception as error:
            ended.set_exception(error)
            ended.exception()  # where nobody waits for it, it is this task's alone
            raise
        else:
            ended.set_result(result)
        finally:
            del self._running[key]
        return result

    async def _kept_or_new(
        self, key: str, task_id: str, work: Callable[[], Awaitable[TaskResult]]
    ) -> TaskResult:
        begin = time.time()
        kept = await asyncio.to_thread(self._read, key)
        # The same id again is the manager's wish that it runs again.
        if kept is not None and kept.task_id != task_id:
            log.info(
                "the same task of this round ended just now: its result is this one's", other=kept.task_id
            )
            return _of(kept, task_id)
        result = await work()
        await asyncio.to_thread(self._keep, key, begin, result)
        return result

    def _read(self, key: str) -> TaskResult | None:
        try:
            kept = json.loads(self._path(key).read_bytes())
            age = time.time() - float(kept["begin"])
            return TaskResult.decode(kept["result"]) if 0 <= age < SAME_START_S else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, MalformedMessageError) as error:
            log.warning("the result of a round's task cannot be read", reason=str(error))
            return None

    def _keep(self, key: str, begin: float, result: TaskResult) -> None:
        content = json.dumps({"begin": begin, "result": json.loads(result.encode())}).encode()
        try:
            write_durably(self._path(key), content, mode=0o600)
            kept = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            for path in kept[:-MAX_KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:  # without it a second task runs once more
            log.warning("the result of a round's task is not kept", reason=str(error))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _key(start: TaskStart) -> str:
    """What a task asks for: all of it but its id."""
    asked = start.model_dump(mode="json", exclude={"id", "state"})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _of(result: TaskResult, task_id: str) -> TaskResult:
    """A result of another task as that of ``task_id``."""
    inner = result.results
    if isinstance(inner, dict) and "task_id" in inner:
        inner = {**inner, "task_id": task_id}
    return result.model_copy(update={"task_id": task_id, "results": inner})
