"""examples/kmeans on a stack: the clusters that Lloyd's algorithm finds in all points, and those of a simulation."""

import json
from pathlib import Path

import numpy as np
import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.sdk import Propeller
from propeller.simulation import simulate
from support.stack import propeller, running_stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "kmeans" / "experiment.toml"
PLACES = [[0, 0], [6, 1], [1, 7], [7, 7]]
"""About which the points were drawn."""


@pytest.mark.timeout(240)
def test_the_clusters_are_found(tmp_path: Path) -> None:
    points = np.array(
        [
            record["x"]
            for file in sorted((EXAMPLE.parent / "data").glob("*.json"))
            for record in json.loads(file.read_text())["data"]
        ]
    )
    with running_stack(tmp_path / "state") as up:
        done = propeller("run", str(EXAMPLE), "--strict", "--state", str(up.folder))
        assert done.returncode == 0, done.stderr
        with Propeller.from_state(up.folder) as fl:
            model = fl.experiment("kmeans").model()
    centres = model["centres"]
    np.testing.assert_allclose(centres, PLACES, atol=0.4)
    nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    pooled = np.array([points[nearest == cluster].mean(axis=0) for cluster in range(4)])
    np.testing.assert_allclose(
        centres, pooled, rtol=1e-12
    )  # it has converged: each is the mean of its points
    np.testing.assert_allclose(model["sums"] / model["counts"][:, None], pooled, rtol=1e-12)
    same = simulate(ExperimentFile.load(EXAMPLE).to_experiment()).model()
    assert all(np.array_equal(same[name], array) for name, array in model.items())
