"""What a proplet tells the manager about itself: that it is there, that it lives, what it uses.

A container's health check reads that it lives from a file, as a proplet serves no HTTP.
"""

import contextlib
import platform
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from propeller import __version__
from propeller.mqtt.session import NotConnectedError, Session
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.proplet.policy import PolicyFile
from propeller.proplet.settings import PropletSettings
from propeller.protocol.proplet import (
    CpuMetrics,
    HeartbeatMessage,
    MemoryMetrics,
    PropletMetadata,
    PropletMetrics,
    Registration,
)
from propeller.protocol.requirements import NativePython
from propeller.protocol.topics import Kind, PropletTopics
from propeller.protocol.wire import Message

log = get_logger("presence")

RUNTIME = "wasmtime-internal"
MAX_MISSED_HEARTBEATS = 3
"""Heartbeats that may be missed before a proplet counts as gone, as with the manager."""

_GOODBYE_TIMEOUT_S = 0.5
_CGROUP = Path("/sys/fs/cgroup")


def offline_message(proplet_id: str, namespace: str) -> bytes:
    """The last will, and the goodbye of a clean stop."""
    return HeartbeatMessage(proplet_id=proplet_id, status="offline", namespace=namespace).encode()


class HeartbeatFile:
    """The file ``heartbeat`` of a proplet's folder: until when it counts as alive, in seconds since 1970."""

    def __init__(self, folder: Path, interval_s: float) -> None:
        """``interval_s`` between heartbeats."""
        self._file, self._lifetime_s = folder / "heartbeat", MAX_MISSED_HEARTBEATS * interval_s

    def clear(self) -> None:
        """Forget what an earlier process wrote.

        Raises:
            OSError: the file cannot be removed.
        """
        self._file.unlink(missing_ok=True)

    def mark(self) -> None:
        """A heartbeat went out. A disk that cannot be written costs the check's verdict, not the next heartbeat."""
        temporary = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_text(f"{time.time() + self._lifetime_s:.3f}\n", encoding="ascii")
            temporary.replace(self._file)


class Presence:
    """Registers on every connect and reports at intervals."""

    def __init__(
        self,
        settings: PropletSettings,
        session: Session,
        topics: PropletTopics,
        heartbeat_file: HeartbeatFile,
        policy: PolicyFile,
        native: NativePython | None = None,
    ) -> None:
        """``policy`` is the device's, ``native`` its interpreter for native programs."""
        self._settings, self._session, self._topics = settings, session, topics
        self._heartbeat_file, self._policy, self._native = heartbeat_file, policy, native
        self._background = BackgroundTasks("proplet")
        self._metadata = device_metadata(settings)
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the start of what the next one measures

    async def announce(self) -> None:
        """Register, then send a heartbeat."""
        self._metadata = self._metadata.model_copy(update=self._by_policy())
        create = Registration(
            proplet_id=self._settings.client_id, namespace=self._settings.namespace, metadata=self._metadata
        )
        await self._publish(Kind.PROPLET_CREATE, create, self._settings.mqtt_qos)
        await self._beat()

    def start(self) -> None:
        """Begin to send heartbeats and metrics at their intervals."""
        spawn = self._background.spawn_periodic
        spawn("sending heartbeats", self._send_heartbeat, self._settings.liveliness_interval)
        if self._settings.monitoring and self._settings.metrics_interval > 0:
            spawn("sending metrics", self._send_metrics, self._settings.metrics_interval)

    async def stop(self) -> None:
        """Send no more of them."""
        await self._background.close()

    async def send_goodbye(self) -> None:
        """Say that the proplet is offline, if there is a connection."""
        if self._session.connected:
            with contextlib.suppress(NotConnectedError):
                payload = offline_message(self._settings.client_id, self._settings.namespace)
                await self._session.publish(
                    self._topics.says(Kind.PROPLET_ALIVE), payload, timeout=_GOODBYE_TIMEOUT_S
                )

    async def _send_heartbeat(self) -> None:
        if any(getattr(self._metadata, name) != value for name, value in self._by_policy().items()):
            await self.announce()
            return
        await self._beat()

    def _by_policy(self) -> dict[str, Any]:
        """What the policy says now: its hours may have begun or ended, or the file was changed."""
        return {
            "resting": not self._policy.is_open(),
            "native": self._native if self._policy.has_native() else None,
        }

    async def _beat(self) -> None:
        alive = HeartbeatMessage(proplet_id=self._settings.client_id, namespace=self._settings.namespace)
        if await self._publish(Kind.PROPLET_ALIVE, alive):
            self._heartbeat_file.mark()

    async def _send_metrics(self) -> None:
        await self._publish(
            Kind.PROPLET_METRICS,
            process_metrics(self._process, self._settings.client_id, self._settings.namespace),
        )

    async def _publish(self, kind: Kind, message: Message, qos: int = 0) -> bool:
        """Publish, if there is a connection, as what is true now is not worth waiting for; whether the broker took it."""
        if not self._session.connected:
            return False
        try:
            await self._session.publish(
                self._topics.says(kind),
                message.encode(),
                qos=qos,
                timeout=self._settings.mqtt_timeout,
            )
        except NotConnectedError as error:
            log.warning("not published to the manager", topic=str(kind), reason=str(error))
            return False
        return True


def device_metadata(settings: PropletSettings) -> PropletMetadata:
    """What the device is; only what was set, if system information is not to be collected."""
    metadata = PropletMetadata(
        name=settings.instance_id or None,
        description=settings.description or settings.instance_id or None,
        tags=[tag.strip() for tag in settings.tags.split(",") if tag.strip()] or None,
        location=settings.location,
        proplet_version=__version__,
        wasm_runtime=Path(settings.external_runtime).name if settings.external_runtime else RUNTIME,
        directed=not settings.compat,
        device_state=settings.task_state_bytes > 0,
        own_data=settings.data is not None,
        liveliness_interval=settings.liveliness_interval,
    )
    if not settings.collect_system_info:
        return metadata
    return metadata.model_copy(
        update={
            "ip": _own_address(settings),
            "environment": "docker" if Path("/.dockerenv").exists() else "binary",
            "os": platform.system().lower(),
            "hostname": socket.gethostname(),
            "cpu_arch": platform.machine(),
            "total_memory_bytes": psutil.virtual_memory().total,
        }
    )


def process_metrics(process: psutil.Process, proplet_id: str, namespace: str) -> PropletMetrics:
    """The proplet's own use of CPU (since its start; percent since the last call) and memory."""
    with process.oneshot():
        times, memory, percent = process.cpu_times(), process.memory_info(), process.cpu_percent()
    return PropletMetrics(
        proplet_id=proplet_id,
        namespace=namespace,
        cpu_metrics=CpuMetrics(user_seconds=times.user, system_seconds=times.system, percent=percent),
        memory_metrics=MemoryMetrics(
            rss_bytes=memory.rss,
            container_usage_bytes=_read_number(_CGROUP / "memory.current"),
            container_limit_bytes=_read_number(_CGROUP / "memory.max"),
        ),
    )


def _read_number(file: Path) -> int | None:
    """A control group's number (cgroup v2); ``None`` outside of one or without a limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _own_address(settings: PropletSettings) -> str | None:
    """The address this device has towards the broker; connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in settings.broker.host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((settings.broker.host, settings.broker.port))
        return str(probe.getsockname()[0])
    return None
