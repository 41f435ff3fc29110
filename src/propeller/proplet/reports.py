"""What a proplet publishes about its tasks."""

import contextlib
from collections.abc import Mapping

import psutil

from propeller.mqtt.session import NotConnectedError, Session
from propeller.process.logs import get_logger
from propeller.proplet.work import TaskError
from propeller.protocol.proplet import TaskMetrics
from propeller.protocol.topics import Channel, Kind

log = get_logger("reports")

UPDATE_WAIT_S = 300.0
"""How long an update that the coordinator did not take over HTTP waits for the broker; its round is then long over."""

_RESULT_WAIT_S = 3600.0
_METRICS_WAIT_S = 5.0


class Reports:
    """Results, task metrics, and updates that could not go over HTTP."""

    def __init__(
        self, session: Session, channel: Channel, proplet_id: str, *, qos: int, max_bytes: int
    ) -> None:
        """``max_bytes`` is the longest message the broker takes."""
        self._session, self._channel, self._proplet_id = session, channel, proplet_id
        self._qos, self._max_bytes = qos, max_bytes

    async def send_result(self, payload: bytes) -> None:
        """Publish a result, over as many reconnects as it takes."""
        topic = self._channel.topic(Kind.PROPLET_RESULTS)
        while True:
            try:
                await self._session.publish(topic, payload, qos=self._qos, timeout=_RESULT_WAIT_S)
            except NotConnectedError as error:
                log.warning("result still waits for the broker", reason=str(error))
            else:
                return

    async def send_metrics(self, metrics: TaskMetrics) -> None:
        """Publish a task's metrics; they are not worth waiting for."""
        with contextlib.suppress(NotConnectedError):
            await self._session.publish(
                self._channel.topic(Kind.TASK_METRICS),
                metrics.encode(),
                qos=0,
                timeout=_METRICS_WAIT_S,
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
        topic = self._channel.update(round_id, self._proplet_id)
        try:
            await self._session.publish(topic, payload, qos=max(1, self._qos), timeout=UPDATE_WAIT_S)
        except NotConnectedError as error:
            raise TaskError(
                f"the update reached the coordinator neither over HTTP nor over MQTT: {error}"
            ) from None
        log.info("update published over MQTT", topic=topic, bytes=len(payload))


def sample(task_id: str, proplet_id: str, usage: Mapping[str, float]) -> TaskMetrics:
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
