"""The demo's records: the Wisconsin diagnostic data, as three hospitals would have it.

**Held out**: a fifth of the records, of each class alike; no hospital has them, and nothing is computed from them.

**Split**: the others go to the hospitals unevenly in number and in kind, as referrals would. In each class they are
ordered by the mean radius of the nuclei (the first feature) and cut: ``Riverside``, a screening centre, has the smaller
three quarters of the benign ones and a twentieth of the malignant ones; ``Lakeview`` has a few of either; ``St. Anne``, a
cancer centre, has the larger four fifths of the malignant ones and hardly a benign one. Each sees a part of the disease, so
each alone learns a part of it. (With ten rounds of two epochs the federated model was better than the best hospital alone
for each of ten draws of the held-out records: .981 against .961 on average.)

**Standardisation**: each feature minus its mean, divided by its standard deviation. Both come from three sums over each
hospital's own records (count, sum, sum of squares), which is all that hospitals would have to share; the held-out records
are scaled by the same numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

TARGET_ACCURACY = 0.95
"""What the federated model must reach on the held-out records."""

HELD_OUT = 0.2
SEED = 0

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """The records, divided.

    Attributes:
        names: of the hospitals.
        parts: for each hospital the dataset that its data store holds, ``{"schema", "data": [{"x", "y"}], "size"}``;
            ``y`` 1 is malignant.
        held_out: features, of shape [records, features], and labels, of shape [records].
    """

    names: tuple[str, ...]
    parts: tuple[dict[str, Any], ...]
    held_out: tuple[Matrix, Matrix]

    @property
    def features(self) -> int:
        """How many features a record has."""
        return int(self.held_out[0].shape[1])


_HOSPITALS = (("Riverside", 0.75, 0.05), ("Lakeview", 0.20, 0.15), ("St. Anne", 0.05, 0.80))
"""Name, share of the benign and share of the malignant records that are not held out."""


def load() -> Split:
    """The records of the three hospitals and those held out: the same each time."""
    features, labels = read_records()
    rng = np.random.default_rng(SEED)
    held: list[np.intp] = []
    parts: list[list[np.intp]] = [[] for _ in _HOSPITALS]
    for label in (0, 1):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        count = round(HELD_OUT * len(shuffled))
        held.extend(shuffled[:count])
        rest = shuffled[count:]
        ordered = rest[np.argsort(features[rest, 0], kind="stable")]
        shares = np.cumsum([hospital[1 + label] for hospital in _HOSPITALS])
        cuts = [0, *(round(share * len(ordered)) for share in shares)]
        for number, part in enumerate(parts):
            part.extend(ordered[cuts[number] : cuts[number + 1]])
    scaled = _standardise(features, [np.array(part) for part in parts])
    names = tuple(name for name, _benign, _malignant in _HOSPITALS)
    return Split(
        names,
        tuple(_dataset(scaled[part], labels[part]) for part in parts),
        (scaled[held], labels[held]),
    )


def accuracy(model: Mapping[str, Any], held_out: tuple[Matrix, Matrix]) -> float:
    """The share of records that a model ``{"w": [features], "b": number}`` classifies rightly."""
    features, labels = held_out
    logits = features @ np.asarray(model["w"], np.float64) + float(model["b"])
    return float(np.mean((logits > 0) == (labels == 1)))


def _standardise(features: Matrix, parts: list[npt.NDArray[np.intp]]) -> Matrix:
    sums = [(len(part), features[part].sum(0), np.square(features[part]).sum(0)) for part in parts]
    count = sum(part[0] for part in sums)
    mean = sum((part[1] for part in sums), np.zeros(features.shape[1])) / count
    square = sum((part[2] for part in sums), np.zeros(features.shape[1])) / count
    scaled: Matrix = (features - mean) / np.sqrt(square - np.square(mean))
    return scaled


def _dataset(features: Matrix, labels: Matrix) -> dict[str, Any]:
    # Six digits: more says nothing about a cell, and the documents are half as long.
    rows = zip(np.round(features, 6).tolist(), labels.tolist(), strict=True)
    data = [{"x": row, "y": int(label)} for row, label in rows]
    return {"schema": "fl-demo-dataset-v1", "data": data, "size": len(data)}


def read_records() -> tuple[Matrix, Matrix]:
    """All records: features of shape [569, 30], and labels of shape [569]; 1 is malignant (in the file it is 0)."""
    with (files(__package__) / "breast_cancer.csv").open(encoding="utf-8") as stream:
        table = np.loadtxt(stream, delimiter=",", skiprows=1)
    return table[:, :-1], 1.0 - table[:, -1]
