"""What a person says of a simulation beside the experiment: the table ``[simulation]`` of an experiment file."""

from typing import Annotated, Any

from pydantic import Field

from propeller.protocol.selection import Seed
from propeller.protocol.strict import StrictMessage
from propeller.simulation.devices import Distribution, VirtualDevices

MAX_CLIENTS = 10_000_000


class DevicesSpec(StrictMessage):
    """What devices do: distributions, as ``{"distribution": "lognormal", "median": 10, "sigma": 1}``, or constants."""

    seconds: Any = 1.0
    """Of a task's computation."""
    bytes_per_s: Any = None
    """Of a device's connection, each way; without it what is sent takes no time."""
    drop_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The part of tasks in which the device drops out."""
    seed: Seed = 0

    def to_devices(self) -> VirtualDevices:
        """The devices.

        Raises:
            InvalidError: a distribution is none.
        """
        speed = self.bytes_per_s
        return VirtualDevices(
            Distribution.decode(self.seconds, "devices.seconds"),
            None if speed is None else Distribution.decode(speed, "devices.bytes_per_s"),
            self.drop_out,
            self.seed,
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
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes that run clients; default: one a core."""
    first_version: Annotated[int, Field(ge=0)] = 1
    """The number of the model to start from: programs may draw by it."""
