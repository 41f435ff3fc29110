"""k-means over devices: as Lloyd's algorithm on all samples together."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.sdk import Experiment
from support.included import included, run_rounds

Numbers = npt.NDArray[np.float64]


def lloyd(points: Numbers, centres: Numbers, steps: int) -> tuple[Numbers, float]:
    """The centres after so many steps, and the sum of squared distances to them; an empty cluster keeps its centre."""
    for _ in range(steps):
        nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        centres = np.array(
            [
                points[nearest == k].mean(axis=0) if (nearest == k).any() else centre
                for k, centre in enumerate(centres)
            ]
        )
    return centres, float(((points[:, None] - centres) ** 2).sum(axis=2).min(axis=1).sum())


def run(devices: list[Numbers], centres: Numbers, rounds: int) -> dict[str, Any]:
    experiment = Experiment(
        program="propeller/kmeans.py",
        rounds=rounds,
        strategy={"name": "sum", "min_devices": 1, "maximum": ["centres"]},
        model={
            "centres": centres,
            "sums": np.zeros_like(centres),
            "counts": np.zeros(len(centres), np.int64),
            "inertia": np.zeros(()),
        },
    )
    datasets = [[{"x": point.tolist()} for point in points] for points in devices]
    return run_rounds(experiment, included("kmeans").step, datasets)


@given(seed=st.integers(0, 2**32 - 1), clusters=st.integers(1, 6), rounds=st.integers(1, 6))
def test_it_is_lloyds_algorithm_on_all_points(seed: int, clusters: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    devices = [rng.normal(size=(int(rng.integers(1, 15)), 3)) + rng.normal(size=3) for _ in range(3)]
    centres = rng.normal(size=(clusters, 3)) * 3  # some are far from all points: empty
    found = run(devices, centres, rounds)
    expected, inertia = lloyd(np.concatenate(devices), centres, rounds - 1)
    np.testing.assert_allclose(found["centres"], expected, rtol=1e-9, atol=1e-12)
    assert found["inertia"] == pytest.approx(inertia, rel=1e-9)
    assert found["counts"].dtype == np.int64
    assert found["counts"].sum() == sum(map(len, devices))


def test_known_clusters_are_found_and_one_without_points_keeps_its_centre() -> None:
    rng = np.random.default_rng(0)
    places = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    devices = [rng.normal(size=(40, 2)) * 0.3 + places[number % 3] for number in range(4)]
    first = np.array([[1.0, 2.0], [7.0, 1.0], [2.0, 6.0], [500.0, 500.0]])
    found = run(devices, first, 5)
    np.testing.assert_allclose(found["centres"][:3], places, atol=0.2)
    assert found["centres"][3].tolist() == [500.0, 500.0]
    assert found["counts"].tolist() == [80, 40, 40, 0]
