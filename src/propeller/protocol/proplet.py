"""What a proplet reports of itself: topics ``create``, ``alive``, ``metrics`` and ``task_metrics``."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from propeller.protocol.ids import Id
from propeller.protocol.requirements import NativePython
from propeller.protocol.wire import Message, Time, now, null_as_empty


class PropletMetadata(Message):
    """The device and its software, as H sends it, and its name. ``directed`` asks for messages on the directed topics."""

    name: str | None = None
    """What it calls itself, as it was set up; only where the manager asks no identity it is called so."""
    description: str | None = None
    tags: list[str] | None = None
    location: str | None = None
    ip: str | None = None
    environment: str = ""
    os: str = ""
    hostname: str | None = None
    cpu_arch: str = ""
    total_memory_bytes: int = 0
    proplet_version: str = ""
    wasm_runtime: str = ""
    directed: bool = False
    device_state: bool = False
    """Whether programs of experiments can keep something on it from round to round."""
    own_data: bool = False
    """Whether it reads its data from a file of its own: what the data store has for it is not used."""
    resting: bool = False
    """Whether its owner lets no task begin at this hour: no round chooses it."""
    native: NativePython | None = None
    """Its interpreter for native programs, where its owner lets such run."""
    liveliness_interval: Annotated[float, Field(gt=0)] | None = None
    """Seconds between heartbeats; the manager's liveness window follows it."""


class Registration(Message):
    """A proplet registers."""

    proplet_id: Id
    namespace: str = "default"
    metadata: PropletMetadata | None = None


class HeartbeatMessage(Message):
    """A heartbeat, or a last will: then ``status`` is ``offline``."""

    proplet_id: Id
    status: str = "alive"
    namespace: str = "default"

    @property
    def is_alive(self) -> bool:
        """Whether it is a heartbeat and not a last will or goodbye."""
        return self.status == "alive"


class CpuMetrics(Message):
    """CPU use of the proplet's process: seconds since its start, percent of one core."""

    user_seconds: float = 0.0
    system_seconds: float = 0.0
    percent: float = 0.0


class MemoryMetrics(Message):
    """Memory of the proplet's process and of the container around it, in bytes."""

    rss_bytes: int = 0
    heap_alloc_bytes: int = 0
    heap_sys_bytes: int = 0
    heap_inuse_bytes: int = 0
    container_usage_bytes: int | None = None
    container_limit_bytes: int | None = None


class PropletMetrics(Message):
    """A proplet's own use of its device, sent periodically."""

    proplet_id: Id
    namespace: str = "default"
    timestamp: Time = Field(default_factory=now)
    cpu_metrics: Annotated[CpuMetrics, BeforeValidator(null_as_empty)] = CpuMetrics()
    memory_metrics: Annotated[MemoryMetrics, BeforeValidator(null_as_empty)] = MemoryMetrics()


class TaskMetrics(Message):
    """Resource use of one task, sent while it runs and at its end."""

    task_id: Id
    proplet_id: Id
    metrics: Annotated[dict[str, Any], BeforeValidator(null_as_empty)] = Field(default_factory=dict)
    aggregated: dict[str, Any] | None = None
    timestamp: Time = Field(default_factory=now)
