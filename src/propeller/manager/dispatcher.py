"""Messages to proplets: starts and stops of tasks, each on the proplet's own topic if it has one."""

import asyncio
import base64
import json
from typing import Any

from propeller.errors import TooLargeError, UnavailableError
from propeller.manager.fleet import PropletRecord
from propeller.manager.task import Task
from propeller.mqtt.session import NotConnectedError, Session
from propeller.protocol.models import SentModel
from propeller.protocol.rounds import RoundStart
from propeller.protocol.task import USUAL_PRIORITY, TaskStart, TaskStop, encode_json
from propeller.protocol.topics import Channel, Kind

_MAX_CONCURRENT_PUBLISHES = 10
"""The MQTT library warns above this."""

_HEADROOM_BYTES = 65_536
"""Of a start message, for what is not the program."""

_DEFAULT_MONITORING_PROFILE = {
    "enabled": True,
    "interval": 10,
    "collect_cpu": True,
    "collect_memory": True,
    "collect_disk_io": True,
    "collect_threads": True,
    "collect_file_descriptors": True,
    "export_to_mqtt": True,
    "retain_history": True,
    "history_size": 100,
}
_MIN_NANOSECONDS = 1_000_000
"""An interval of at least this is in nanoseconds, as clients in Go write it; a smaller one is in seconds."""


class Dispatcher:
    """Publishes the manager's messages to proplets."""

    def __init__(
        self,
        session: Session,
        channel: Channel,
        *,
        qos: int,
        timeout_s: float,
        max_bytes: int,
    ) -> None:
        """``max_bytes`` bounds a message; ``timeout_s`` is how long the broker may take to acknowledge it."""
        self._session, self._channel, self._qos = session, channel, qos
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_PUBLISHES)

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self._session.connected

    @property
    def max_program_bytes(self) -> int:
        """The largest program that fits in a start message as base64."""
        return (self._max_bytes - _HEADROOM_BYTES) * 3 // 4

    def explain_too_long(self, hyperparams: Any) -> str | None:
        """Why the start messages of a round cannot carry its hyperparameters, or ``None`` if they can."""
        size = (
            len(json.dumps(encode_json(hyperparams).decode())) if hyperparams else 0
        )  # a text in the message
        limit = self._max_bytes - _HEADROOM_BYTES
        if size <= limit:
            return None
        return (
            f"hyperparams: {size} bytes do not fit in one MQTT message (limit {limit}, MANAGER_MAX_MESSAGE_BYTES): "
            "what is large belongs in the model, or in the devices' data"
        )

    async def require_connection(self) -> None:
        """Wait a moment for the broker.

        Raises:
            UnavailableError: it cannot be reached.
        """
        if not await self._session.wait_connected(self._timeout_s):
            raise self._unreachable()

    def encode_start(
        self, task: Task, proplet: PropletRecord, file: bytes | None, model: SentModel | None = None
    ) -> bytes:
        """The start message of a task for a proplet, with its program and its base model, if these go along.

        Raises:
            TooLargeError: it is larger than a message may be.
        """
        spec = task.spec
        start = TaskStart(
            id=task.id,
            name=spec.name,
            image_url=spec.image_url,
            file=base64.b64encode(file).decode() if file else None,
            inputs=[_input_text(value) for value in spec.inputs or ()],
            cli_args=spec.cli_args or [],
            daemon=spec.daemon,
            env=spec.env or {},
            encrypted=spec.encrypted,
            kbs_resource_path=spec.kbs_resource_path,
            monitoring_profile=_complete_profile(spec.monitoring_profile),
            proplet_id=proplet.id,
            limits=spec.limits,
            prefetch=spec.kind == "prefetch",
            priority=USUAL_PRIORITY if spec.priority is None else spec.priority,
            model=model if proplet.directed else None,
        )
        message = start.encode(text_inputs=proplet.reads_text_inputs)
        if model is not None and len(message) > self._max_bytes:
            return self.encode_start(task, proplet, file)
        if len(message) > self._max_bytes:
            raise TooLargeError(
                f"the start message of this task would have {len(message)} bytes, the limit is {self._max_bytes}: "
                "push the program to an OCI registry and set image_url instead of file",
            )
        return message

    async def start(self, message: bytes, proplet: PropletRecord) -> None:
        """Publish a start message.

        Raises:
            UnavailableError: the broker did not acknowledge it.
        """
        channel = self._channel
        topic = channel.start(proplet.id) if proplet.directed else channel.topic(Kind.START)
        await self._publish(topic, message)

    async def stop(self, task_id: str, proplet_id: str, *, directed: bool) -> None:
        """Publish the stop of a task.

        Raises:
            UnavailableError: the broker did not acknowledge it.
        """
        topic = self._channel.stop(proplet_id) if directed else self._channel.topic(Kind.STOP)
        await self._publish(topic, TaskStop(id=task_id, proplet_id=proplet_id).encode())

    async def announce(self, start: RoundStart) -> None:
        """Announce on the channel that a round starts.

        Raises:
            UnavailableError: the broker did not acknowledge it.
        """
        await self._publish(self._channel.topic(Kind.ROUND_START), start.encode())

    async def _publish(self, topic: str, message: bytes) -> None:
        try:
            async with self._slots:
                await self._session.publish(topic, message, self._qos, self._timeout_s)
        except NotConnectedError:
            raise self._unreachable() from None

    def _unreachable(self) -> UnavailableError:
        why = self._session.problem or "see whether it runs"
        return UnavailableError(f"no MQTT broker at {self._session.address}: {why}; try again then")


def _input_text(value: Any) -> str:
    """An input as text; booleans and lists, which components take, as JSON."""
    return encode_json(value).decode() if isinstance(value, bool | list) else str(value)


def _complete_profile(profile: dict[str, Any] | None) -> dict[str, Any] | None:
    """A monitoring profile with all ten fields, as proplets of later absmach/propeller (H) refuse fewer."""
    if profile is None:
        return None
    known = {
        key: value
        for key, value in profile.items()
        if key in _DEFAULT_MONITORING_PROFILE and value is not None
    }
    interval = known.get("interval")
    if isinstance(interval, int | float) and interval >= _MIN_NANOSECONDS:
        known["interval"] = round(interval / 1e9)
    return {**_DEFAULT_MONITORING_PROFILE, **known}
