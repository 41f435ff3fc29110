"""The demo's records, and that they show what they are for: through the shipped program, federated beats alone."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.data import hospitals, program_path
from propeller.wasm.sandbox import Sandbox
from support.logreg import Logreg

ROUNDS = 10
EPOCHS = 2


def test_split() -> None:
    """Uneven, complete, the same each time, nothing in two places."""
    split = hospitals.load()
    features, labels = split.held_out
    assert split.names == ("Riverside", "Lakeview", "St. Anne")
    assert [part["size"] for part in split.parts] == [222, 84, 150]
    assert [sum(row["y"] for row in part["data"]) for part in split.parts] == [8, 26, 136]
    assert features.shape == (113, 30)
    assert labels.sum() == 42
    rows = [tuple(row["x"]) for part in split.parts for row in part["data"]]
    rows += [tuple(row) for row in np.round(features, 6).tolist()]
    assert len(set(rows)) == len(rows) == 569
    again = hospitals.load()
    assert again.parts == split.parts
    assert np.array_equal(again.held_out[0], features)


def test_standardised_by_the_hospitals_alone() -> None:
    """Mean 0 and deviation 1 over what the hospitals have, which leaves the held-out records out."""
    split = hospitals.load()
    rows = np.array([row["x"] for part in split.parts for row in part["data"]])
    assert np.abs(rows.mean(0)).max() < 1e-6
    assert np.abs(rows.std(0) - 1).max() < 1e-5
    assert np.abs(split.held_out[0].mean(0)).max() > 1e-3


def test_data_is_the_published_one() -> None:
    """The digest is that of the file in scikit-learn 1.9.1; labels are turned, so that 1 is malignant."""
    content = program_path("logreg").with_name("breast_cancer.csv").read_bytes()
    assert (
        hashlib.sha256(content).hexdigest()
        == "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"
    )
    features, labels = hospitals.read_records()
    assert features.shape == (569, 30)
    assert (labels == 1).sum() == 212


def test_accuracy() -> None:
    held_out = (np.array([[1.0], [-1.0], [2.0]]), np.array([1.0, 0.0, 0.0]))
    assert hospitals.accuracy({"w": [1.0], "b": 0.0}, held_out) == pytest.approx(2 / 3)


def test_program_that_is_not_shipped() -> None:
    with pytest.raises(FileNotFoundError, match="no program 'other'"):
        program_path("other")


async def test_federation_is_worth_it(tmp_path: Path) -> None:
    """Ten rounds of FedAvg against as many epochs in each hospital alone, for three orders of the samples."""
    split = hospitals.load()
    hyperparams = {"lr": 0.1, "batch_size": 16, "seed": 1}
    async with Sandbox(tmp_path) as sandbox:

        async def train(model: Any, hospital: int, epochs: int, round_id: str) -> dict[str, Any]:
            document = await Logreg(sandbox, program_path("logreg")).update(
                model,
                split.parts[hospital],
                {**hyperparams, "epochs": epochs},
                ROUND_ID=round_id,
                PROPLET_ID=f"p{hospital}",
            )
            update: dict[str, Any] = document["update"]
            return update

        sizes = np.array([part["size"] for part in split.parts])
        zero = {"w": [0] * split.features, "b": 0}
        for name in ("a", "b", "c"):
            model: dict[str, Any] = zero
            for number in range(ROUNDS):
                updates = [await train(model, n, EPOCHS, f"{name}{number}") for n in range(3)]
                w = np.average([update["w"] for update in updates], axis=0, weights=sizes)
                b = np.average([update["b"] for update in updates], weights=sizes)
                model = {"w": w.tolist(), "b": float(b)}
            federated = hospitals.accuracy(model, split.held_out)
            alone = [await train(zero, n, EPOCHS * ROUNDS, name) for n in range(3)]
            best = max(hospitals.accuracy(each, split.held_out) for each in alone)
            assert federated >= 0.96
            assert federated >= best + 0.015
