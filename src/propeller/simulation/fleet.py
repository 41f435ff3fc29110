"""A virtual fleet: what each client holds, and what its device does with a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from propeller.errors import InvalidError
from propeller.fl.selection import Candidate, natural_order
from propeller.protocol.task import encode_json
from propeller.sdk.values import plain
from propeller.simulation.client_data import ArrayData, ClientData, DocumentData
from propeller.simulation.datasets import Dataset, read_dataset
from propeller.simulation.devices import VirtualDevices
from propeller.simulation.partitions import Partition

Data = str | Dataset | Mapping[str, Any] | Sequence[Mapping[str, Any]]
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


def make_fleet(
    data: Data,
    *,
    clients: int | None,
    partition: Partition,
    devices: VirtualDevices,
    central_name: str | None,
) -> Fleet:
    """A fleet of what a person gives.

    Args:
        data: what clients hold.
        clients: how many there are; of documents as many as there are of these.
        partition: how a data set is divided.
        devices: how long each takes.
        central_name: the data set of a central evaluation, if there is one.

    Raises:
        InvalidError: the data does not do for so many clients, or is none.
    """
    if isinstance(data, str):
        data = read_dataset(data)
    documents = None if isinstance(data, Dataset) else _documents(data)
    if documents is not None:
        central = documents.pop(central_name, None) if central_name is not None else None
        if clients is not None and clients != len(documents):
            raise InvalidError(
                f"clients: {clients}, but there is data of {len(documents)}: leave clients out, or give a data set to divide"
            )
        return Fleet(
            DocumentData([documents[name] for name in sorted(documents, key=natural_order)]),
            devices,
            None if central is None else DocumentData([central]),
        )
    if isinstance(data, Dataset):
        dataset = data
    elif isinstance(data, Mapping):
        dataset = Dataset.of_columns(data)
    else:
        raise TypeError("data: a sequence is of documents")
    parts = partition.divide(dataset.all_columns, clients)
    test = None
    if central_name is not None and dataset.test is not None:
        if central_name != TEST:
            raise InvalidError(
                f"evaluate.dataset: {central_name!r:.80} is not there: a data set's own test set is called {TEST!r}"
            )
        count = len(next(iter(dataset.test.values())))
        test = ArrayData.of_parts(dataset.test, [np.arange(count)])
    return Fleet(ArrayData.of_parts(dataset.columns, parts), devices, test)


def _documents(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, bytes] | None:
    """The documents of clients by name, if it is documents."""
    if isinstance(data, Mapping):
        if not data or not all(isinstance(each, Mapping) for each in data.values()):
            return None
        named = dict(data)
    else:
        named = {f"client-{number}": each for number, each in enumerate(data, 1)}
    return {name: encode_json(plain(each, f"data.{name}")) for name, each in named.items()}
