"""A virtual fleet: what each client holds, and what its device does with a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np

from propeller.errors import InvalidError
from propeller.fl.selection import Candidate, natural_order
from propeller.protocol.task import encode_json
from propeller.sdk import Experiment
from propeller.sdk.values import plain
from propeller.simulation.client_data import ArrayData, ClientData, DocumentData
from propeller.simulation.datasets import Dataset, read_dataset
from propeller.simulation.devices import VirtualDevices
from propeller.simulation.label_counts import LabelCounts, label_counts
from propeller.simulation.partitions import decode_partition

Data = str | PathLike[str] | Dataset | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""What clients hold: a data set to divide (by name, by path, or its columns), or a document for each client."""

TEST = "test"
"""The name of a data set's own test set, for a central evaluation."""


@dataclass(frozen=True)
class Fleet:
    """A virtual fleet.

    Attributes:
        data: what each client holds.
        devices: how long each takes.
        central: what a central evaluation measures on, if there is such data.
    """

    data: ClientData
    devices: VirtualDevices
    central: ClientData | None = None

    @property
    def candidates(self) -> list[Candidate]:
        """The clients, who are chosen as the devices of a fleet with these names."""
        return [Candidate(f"client-{number}", f"client-{number}") for number in range(1, len(self.data) + 1)]

    def label_counts(self, by: str = "y") -> LabelCounts:
        """How many samples of each class each client has.

        Raises:
            InvalidError: clients have documents, which have no columns, or there is no such column.
        """
        if not isinstance(self.data, ArrayData):
            raise InvalidError(
                "a picture of labels is of a data set that is divided, and here each client has a document"
            )
        rows = [self.data.rows(client) for client in range(len(self.data))]
        return label_counts(self.data.columns, rows, by)


def fleet_of(
    experiment: Experiment,
    *,
    clients: int | None = None,
    data: Data | None = None,
    partition: Any = "iid",
    test: float | None = None,
    devices: VirtualDevices | None = None,
) -> Fleet:
    """The virtual fleet of an experiment.

    Args:
        experiment: its ``evaluate`` says whether there is data for a central evaluation.
        clients: how many there are; of documents as many as there are of these.
        data: what they hold; default: the experiment's own.
        partition: how a data set is divided.
        test: the part of a data set that is held out as its test set, before it is divided.
        devices: how long each takes.

    Raises:
        InvalidError: the data does not do for so many clients, or is none.
    """
    if data is None:
        data = experiment.data
    if data is None:
        raise InvalidError(
            "data: say what clients hold: the name or path of a data set, its columns, or a document for each"
        )
    divided, devices = decode_partition(partition), devices or VirtualDevices()
    plan = experiment.spec.evaluate
    central_name = plan.dataset if plan is not None and plan.on == "central" else None
    dataset = _dataset(data)
    if dataset is None:
        return _fleet_of_documents(data, clients, devices, central_name)
    if test is not None:
        dataset = dataset.hold_out(test)
    parts = divided.divide(dataset.all_columns, clients)
    central = None
    if central_name is not None:
        if central_name != TEST or dataset.test is None:
            raise InvalidError(
                f"evaluate.dataset: {central_name!r:.80} is not there: a data set's own test set is called {TEST!r}, and one that has "
                "none gets one by simulation.test, the part that is held out (test = 0.2)"
            )
        count = len(next(iter(dataset.test.values())))
        central = ArrayData.of_parts(dataset.test, [np.arange(count)])
    return Fleet(ArrayData.of_parts(dataset.columns, parts), devices, central)


def _dataset(data: Data) -> Dataset | None:
    """The data set that is to be divided; ``None``: there is a document for each client."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | PathLike):
        return read_dataset(fspath(data))
    if not isinstance(data, Mapping | Sequence):
        raise InvalidError(
            f"data: {type(data).__name__} is no data: give the name or path of a data set, its columns by name, or a document for each client"
        )
    if isinstance(data, Mapping) and not all(isinstance(each, Mapping) for each in data.values()):
        return Dataset.of_columns(data)
    return None


def _fleet_of_documents(
    data: Any, clients: int | None, devices: VirtualDevices, central_name: str | None
) -> Fleet:
    named = (
        data if isinstance(data, Mapping) else {f"client-{number}": one for number, one in enumerate(data, 1)}
    )
    documents = {name: encode_json(plain(each, f"data.{name}")) for name, each in named.items()}
    central = documents.pop(central_name, None) if central_name is not None else None
    if not documents:
        raise InvalidError("data: there is none: give a document for each client, or a data set to divide")
    if clients is not None and clients != len(documents):
        raise InvalidError(
            f"clients: {clients}, but there is data of {len(documents)}: leave clients out, or give a data set to divide"
        )
    return Fleet(
        DocumentData([documents[name] for name in sorted(documents, key=natural_order)]),
        devices,
        None if central is None else DocumentData([central]),
    )
