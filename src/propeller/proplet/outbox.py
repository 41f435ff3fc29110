"""What a proplet publishes about its tasks: results, from the disk, task metrics, and updates that could not go over HTTP.

A result's file is made when a task is accepted, holding the result that is true if the process dies now ("interrupted").
The task's own result replaces it, and it is removed once published, so that a restart sends what is unsent. Killed at any
point, the manager hears once what became of each task, or twice the same.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil

from propeller.mqtt.session import NotConnectedError, Session
from propeller.process.files import sync_folder
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.proplet.errors import TaskError
from propeller.protocol.proplet import TaskMetrics
from propeller.protocol.task import TaskResult, TaskStage
from propeller.protocol.topics import Kind, PropletTopics
from propeller.protocol.wire import MalformedMessageError

log = get_logger("outbox")

SYNC_AFTER_S = 1.0
"""A result that the broker does not take for this long is synced to the disk, against a loss of power."""

UPDATE_TIMEOUT_S = 300.0
"""How long an update that the coordinator did not take over HTTP waits for the broker; its round is then long over."""

_RESULT_TIMEOUT_S = 3600.0
_METRICS_TIMEOUT_S = 5.0

SendResult = Callable[[bytes], Awaitable[None]]
"""Publishes a result, however long it takes; returns when the broker has it."""


class TaskPublisher:
    """Publishes results, task metrics, and updates that could not go over HTTP."""

    def __init__(self, session: Session, topics: PropletTopics, *, qos: int, max_bytes: int) -> None:
        """``max_bytes`` is the longest message the broker takes."""
        self._session, self._topics = session, topics
        self._qos, self._max_bytes = qos, max_bytes

    async def send_result(self, payload: bytes) -> None:
        """Publish a result, over as many reconnects as it takes."""
        topic = self._topics.says(Kind.PROPLET_RESULTS)
        await retry(
            lambda: self._session.publish(topic, payload, qos=self._qos, timeout=_RESULT_TIMEOUT_S),
            delays=(0.0,),
            on=lambda error: isinstance(error, NotConnectedError),
            forever=True,
            failed=lambda error, _delay: log.warning("result still waits for the broker", reason=str(error)),
        )

    async def send_metrics(self, metrics: TaskMetrics) -> None:
        """Publish a task's metrics; they are not worth waiting for."""
        with contextlib.suppress(NotConnectedError):
            await self._session.publish(
                self._topics.says(Kind.TASK_METRICS),
                metrics.encode(),
                qos=0,
                timeout=_METRICS_TIMEOUT_S,
            )

    async def send_stage(self, stage: TaskStage) -> None:
        """Publish what is done for a task; proplets of absmach/propeller do not, so neither does a compat one."""
        if self._topics.compat:
            return
        with contextlib.suppress(NotConnectedError):
            await self._session.publish(
                self._topics.says(Kind.TASK_STAGE),
                stage.encode(),
                qos=0,
                timeout=_METRICS_TIMEOUT_S,
            )

    async def send_update(self, round_id: str, payload: bytes) -> None:
        """Publish an update as it would have gone over HTTP; its first byte tells JSON from safetensors.

        Raises:
            TaskError: it is too long for a message, or the broker did not take it in time.
        """
        if len(payload) > self._max_bytes:
            raise TaskError(
                f"the update of {len(payload)} bytes did not reach the coordinator over HTTP and is too long for MQTT "
                f"(PROPLET_MQTT_MAX_PACKET_SIZE is {self._max_bytes})"
            )
        topic = self._topics.channel.update(round_id, self._topics.proplet_id)
        try:
            await self._session.publish(topic, payload, qos=max(1, self._qos), timeout=UPDATE_TIMEOUT_S)
        except NotConnectedError as error:
            raise TaskError(
                f"the update reached the coordinator neither over HTTP nor over MQTT: {error}"
            ) from None
        log.info("update published over MQTT", topic=topic, bytes=len(payload))


class Outbox:
    """Unsent results, a file each."""

    def __init__(self, folder: Path, send: SendResult, max_bytes: int) -> None:
        """``folder`` is made if it is not there; ``max_bytes`` is the longest message the broker takes."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._send, self._max_bytes = folder, send, max_bytes
        self._numbers = itertools.count()
        for half_written in folder.glob("*.tmp"):  # what it would have replaced is still there
            half_written.unlink()
        self._left_over = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)

    def add(self, result: TaskResult) -> Path:
        """Keep what is true if the process dies now; quick, safe against the process's death (not the machine's)."""
        path = self._folder / f"{result.task_id}-{time.time_ns()}-{next(self._numbers)}.json"
        _write(path, result.encode())
        return path

    async def deliver(self, path: Path, result: TaskResult) -> None:
        """Replace what ``add`` kept by a task's result, publish it, and forget it."""
        payload = result.encode()
        if len(payload) > self._max_bytes:
            error = (
                f"the result of {len(payload)} bytes is over the {self._max_bytes} that a message may have"
            )
            payload = result.model_copy(update={"results": "", "error": error}).encode()
        _write(path, payload)
        loop = asyncio.get_running_loop()
        sync_later = loop.call_later(SYNC_AFTER_S, lambda: loop.run_in_executor(None, _sync, path))
        try:
            await self._send(payload)
        finally:
            sync_later.cancel()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - quick

    async def send_left_over(self) -> None:
        """Publish, oldest first, what an earlier process left."""
        while self._left_over:
            path = self._left_over[0]
            payload = await asyncio.to_thread(path.read_bytes)
            try:
                result = TaskResult.decode(payload)
            except MalformedMessageError as error:
                log.warning("unsent result dropped, it cannot be read", file=path.name, reason=str(error))
            else:
                await self._send(payload)
                log.info("sent a result that an earlier run left", task_id=result.task_id, error=result.error)
            path.unlink(missing_ok=True)
            self._left_over.pop(0)


def task_metrics(task_id: str, proplet_id: str, usage: Mapping[str, float]) -> TaskMetrics:
    """A task's use of the device over its whole run: the names of absmach/propeller, then every figure there is."""
    total_ms, cpu_ms = usage.get("total_ms", 0.0), usage.get("cpu_ms", 0.0)
    memory = int(usage.get("memory_peak_bytes", 0))
    return TaskMetrics(
        task_id=task_id,
        proplet_id=proplet_id,
        metrics={
            "cpu_percent": round(100 * cpu_ms / total_ms, 2) if total_ms else 0.0,
            "memory_bytes": memory,
            "memory_percent": round(100 * memory / psutil.virtual_memory().total, 2),
            "disk_read_bytes": 0,
            "disk_write_bytes": 0,
            "uptime_seconds": int(total_ms / 1000),
            "thread_count": 1,
            "file_descriptor_count": 0,
            **usage,
        },
    )


def _write(path: Path, payload: bytes) -> None:
    """Write a file as a whole or not at all; a full disk costs the safety, not the result."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb", opener=_open_private) as file:
            file.write(payload)
        temporary.replace(path)
    except OSError as error:
        log.warning("a result is not safe on disk", file=path.name, reason=str(error))


def _open_private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _sync(path: Path) -> None:
    """Make a file and its name outlive a loss of power."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except FileNotFoundError:  # it was sent meanwhile
        pass
    except OSError as error:
        log.warning("a result is not safe on disk", file=path.name, reason=str(error))
