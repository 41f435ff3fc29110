"""Experiments with a virtual fleet: the fleet's own programs, strategies and state machines, on this machine's cores.

``from propeller.simulation import simulate`` is how they are run from Python.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from propeller.simulation.datasets import Dataset, read_dataset
    from propeller.simulation.partitions import decode_partition
    from propeller.simulation.simulation import Simulation, simulate

__all__ = ["Dataset", "Simulation", "decode_partition", "read_dataset", "simulate"]

_MODULES = {
    "Dataset": "datasets",
    "Simulation": "simulation",
    "decode_partition": "partitions",
    "read_dataset": "datasets",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is used: workers, which import this too, need none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
