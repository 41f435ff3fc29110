"""What a person says of a simulation beside the experiment: the table ``[simulation]`` of an experiment file."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from propeller.errors import InvalidError
from propeller.protocol.selection import Seed
from propeller.protocol.strict import StrictMessage
from propeller.simulation.availability import Availability, DailyHours, RecordedHours
from propeller.simulation.device_trace import DeviceTrace
from propeller.simulation.devices import LIVENESS_WINDOW_S, DropOut, VirtualDevices
from propeller.simulation.distributions import Distribution

MAX_CLIENTS = 10_000_000


class DropOutSpec(StrictMessage):
    """Devices that go silent in the middle of a task: a number is ``part``."""

    part: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of tasks."""
    noticed_after_s: Annotated[float, Field(ge=0, le=1e9)] = LIVENESS_WINDOW_S
    """After how many seconds of silence a device counts as gone."""


class AvailabilitySpec(StrictMessage):
    """The hours at which devices are there: by distributions, or by a trace."""

    begins: Any = None
    """The hour of the day at which a device comes: a number or a distribution, drawn for each day, or once with ``"by": "client"``."""
    hours: Any = None
    """For how many hours it stays, 24 at most; likewise."""
    trace: str | None = None
    """A CSV file of when devices were there, in the place of these: ``RecordedHours.read``."""
    start: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """The hour of the day, or of the trace, at which the experiment begins."""

    def to_availability(self, seed: int, folder: Path) -> Availability:
        """When devices are there.

        Raises:
            InvalidError: a distribution is none, the trace cannot be read, or both or neither are given.
        """
        told = {name: value for name in ("begins", "hours") if (value := getattr(self, name)) is not None}
        if self.trace is not None:
            if told:
                raise InvalidError(
                    f"devices.available.trace: says when devices are there: leave {' and '.join(told)} out"
                )
            return RecordedHours.read(folder / self.trace, self.start)
        if len(told) < len(("begins", "hours")):
            raise InvalidError(
                "devices.available: give begins, the hour of the day, and hours, for how long; or trace, a CSV file"
            )
        found = {
            name: Distribution.decode(value, f"devices.available.{name}") for name, value in told.items()
        }
        if found["hours"].is_zero:
            raise InvalidError("devices.available.hours: is always 0: give hours, or leave available out")
        return DailyHours(found["begins"], found["hours"], self.start, seed)


class DevicesSpec(StrictMessage):
    """What devices do: by distributions, as ``{"distribution": "lognormal", "median": 10, "sigma": 1}``, and constants; or by a trace.

    With ``"by": "client"`` a distribution is drawn from once for each client, and not for each task.
    """

    seconds: Any = None
    """Of a task's computation; default: 1, or 0 beside ``seconds_per_sample``."""
    seconds_per_sample: Any = None
    """Beside these, for each sample that a client has."""
    bytes_per_s: Any = None
    """Of a device's connection, each way; without it what is sent takes no time."""
    drop_out: DropOutSpec = DropOutSpec()
    """Devices that go silent: the part of tasks, or ``{"part": 0.1, "noticed_after_s": 30}``."""
    trace: str | None = None
    """A CSV file of what devices did, in the place of the distributions: ``DeviceTrace.read``."""
    available: AvailabilitySpec | None = None
    """The hours at which devices are there, as ``{"begins": 22, "hours": 8}``, or a CSV file; default: always."""
    seed: Seed = 0

    @field_validator("available", mode="before")
    @classmethod
    def _read_file(cls, value: Any) -> Any:
        return {"trace": value} if isinstance(value, str) else value

    @field_validator("drop_out", mode="before")
    @classmethod
    def _read_part(cls, value: Any) -> Any:
        return {"part": value} if isinstance(value, int | float) else value

    def to_devices(self, folder: Path | None = None) -> VirtualDevices:
        """The devices.

        Args:
            folder: to which the trace's path is relative; default: the working folder.

        Raises:
            InvalidError: a distribution is none, the trace cannot be read, or both are given.
        """
        told = {
            name: value
            for name in ("seconds", "seconds_per_sample", "bytes_per_s")
            if (value := getattr(self, name)) is not None
        }
        folder = folder or Path()
        availability = None if self.available is None else self.available.to_availability(self.seed, folder)
        drop_out = DropOut(self.drop_out.part, self.drop_out.noticed_after_s)
        if self.trace is not None:
            if told:
                raise InvalidError(f"devices.trace: says how long tasks take: leave {' and '.join(told)} out")
            trace = DeviceTrace.read(folder / self.trace)
            if drop_out.part and trace.says_who_drops_out:
                raise InvalidError(
                    "devices.drop_out.part: the trace says which devices drop out: leave part, or the column, out"
                )
            return VirtualDevices(drop_out=drop_out, seed=self.seed, trace=trace, availability=availability)
        found = {name: Distribution.decode(value, f"devices.{name}") for name, value in told.items()}
        speed = found.get("bytes_per_s")
        if speed is not None and speed.is_zero:
            raise InvalidError("devices.bytes_per_s: is always 0: give bytes a second, or leave it out")
        otherwise = Distribution("constant", (0.0 if "seconds_per_sample" in found else 1.0,))
        return VirtualDevices(
            found.get("seconds", otherwise),
            found.get("seconds_per_sample"),
            speed,
            drop_out,
            self.seed,
            availability=availability,
        )


class SimulationSpec(StrictMessage):
    """A virtual fleet, as it is written down."""

    clients: Annotated[int, Field(ge=1, le=MAX_CLIENTS)] | None = None
    """How many; where each has a document, as many as there are of these."""
    data: str | None = None
    """The data set that is divided: ``digits``, ``mnist-5k``, or a path."""
    partition: Any = "iid"
    """How, as ``"iid"`` or ``{"kind": "dirichlet", "alpha": 0.1}``."""
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The part of the data set that is held out as its test set, for a central evaluation on ``test``."""
    devices: DevicesSpec = DevicesSpec()
    """What they do: a table, or the path of a trace."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes that run clients; default: one a core."""
    ray: str | None = None
    """``HOST:PORT`` of a Ray cluster's head, on whose nodes these are."""
    native_python: str | None = None
    """The interpreter of a native program; default: the device's (``PROPLET_NATIVE_PYTHON``), else the one that runs this."""
    first_version: Annotated[int, Field(ge=0)] = 1
    """The number of the model to start from: programs may draw by it."""

    @field_validator("devices", mode="before")
    @classmethod
    def _read_trace(cls, value: Any) -> Any:
        return {"trace": value} if isinstance(value, str) else value
