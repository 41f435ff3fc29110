"""A Python client of a running Propeller: run experiments, follow them, read their models.

from propeller.sdk import Experiment, Propeller

with Propeller.from_state(".propeller") as fl:
    handle = fl.run(Experiment(program=fl.image(), rounds=5, hyperparams={"epochs": 1, "lr": 0.1}))
    result = handle.wait()
    print(result.model_version, handle.model(), handle.history().metric("loss"))

``AsyncPropeller`` is the same for programs with an event loop. Whatever goes wrong is a ``PropellerError`` that says what to do.
"""

from propeller.errors import PropellerError
from propeller.sdk.blocking import ExperimentHandle, Propeller
from propeller.sdk.client import AsyncPropeller
from propeller.sdk.devices import AsyncDevices, Devices
from propeller.sdk.experiment import Experiment
from propeller.sdk.handle import (
    AsyncExperimentHandle,
    Event,
    ExperimentFailedError,
    ExperimentResult,
    WaitTimeoutError,
)
from propeller.sdk.history import History
from propeller.sdk.initial_model import read_model
from propeller.sdk.models import AsyncModels, Models
from propeller.sdk.rounds import RoundResult
from propeller.sdk.users import AsyncUsers, Users
from propeller.sdk.values import read_dataset

__all__ = [
    "AsyncDevices",
    "AsyncExperimentHandle",
    "AsyncModels",
    "AsyncPropeller",
    "AsyncUsers",
    "Devices",
    "Event",
    "Experiment",
    "ExperimentFailedError",
    "ExperimentHandle",
    "ExperimentResult",
    "History",
    "Models",
    "Propeller",
    "PropellerError",
    "RoundResult",
    "Users",
    "WaitTimeoutError",
    "read_dataset",
    "read_model",
]
