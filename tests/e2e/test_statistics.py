"""examples/statistics on a stack: as the page says, equal to NumPy on all data together, and to a simulation."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.sdk import ExperimentFailedError, Propeller, PropellerError
from propeller.sdk.statistics import read_statistics, statistics_experiment
from propeller.simulation import simulate
from support.stack import Up, propeller, running_stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "statistics" / "experiment.toml"
RECORDS: list[dict[str, Any]] = [
    record
    for file in sorted((EXAMPLE.parent / "data").glob("*.json"))
    for record in json.loads(file.read_text())["data"]
]
SHOWN = re.findall(r"```text\n(.*?)```", (EXAMPLE.parent / "README.md").read_text(), re.DOTALL)[0]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("statistics") / "state") as running:
        yield running


def run(up: Up, *arguments: str) -> str:
    done = propeller(*arguments, "--state", str(up.folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_gives_what_numpy_and_a_simulation_give(up: Up, tmp_path: Path) -> None:
    run(up, "run", str(EXAMPLE), "--strict")
    shown = json.loads(run(up, "statistics", "--of", "wards", "--json"))
    for column in ("age", "dose"):
        pooled = np.array([record[column] for record in RECORDS])
        one = shown[column]
        assert (one["count"], one["missing"]) == (180, 0)
        assert one["mean"] == pytest.approx(pooled.mean(), rel=1e-14)
        assert one["variance"] == pytest.approx(pooled.var(), rel=1e-12)
        bins, _edges = np.histogram(pooled, one["edges"])
        # Those of fewer than three wards are hidden.
        assert all(found in {0, true} for found, true in zip(one["bins"], bins.tolist(), strict=True))
    assert shown["dose"]["maximum"] == max(record["dose"] for record in RECORDS)
    assert shown["age"]["maximum"] is None
    with Propeller.from_state(up.folder) as fl:
        model = fl.experiment("wards").model()
        history = fl.experiment("wards").history()
    simulated = simulate(ExperimentFile.load(EXAMPLE).to_experiment())
    assert simulated.state == "completed", simulated.reason
    same = simulated.model()
    assert model.keys() == same.keys()
    assert all(np.array_equal(same[name], array) for name, array in model.items())
    table = run(up, "statistics", "--of", "wards").rstrip()
    assert [line.split() for line in table.splitlines()] == [line.split() for line in SHOWN.splitlines()]
    file, picture = str(tmp_path / "latest.safetensors"), tmp_path / "result.svg"
    run(up, "model", "export", str(history[-1]["model_version"]), file)
    subprocess.run([sys.executable, EXAMPLE.parent / "draw.py", file, picture], check=True, timeout=60)
    assert f"mean {shown['age']['mean']:.3g} -->" in picture.read_text()
    for one in history:
        for update in one["updates"]:
            assert (update["num_samples"], update["metrics"]) == (1, {})


def test_the_command_asks_the_same_without_a_file(up: Up) -> None:
    run(up, "run", str(EXAMPLE), "--set", "name=stored")  # the wards' data is stored
    text = run(up, "statistics", "dose", "--hitters", "diagnosis", "--range", "dose=0:10", "--bins", "5")
    header, dose, _empty, hitters, first, *_ = text.splitlines()
    assert header.split()[:5] == ["column", "count", "missing", "mean", "deviation"]
    assert dose.split()[:3] == ["dose", "180", "0"]
    assert hitters.split() == ["column", "value", "at", "most"]
    value, count = Counter(record["diagnosis"] for record in RECORDS).most_common(1)[0]
    assert first.split()[:2] == ["diagnosis", value]
    assert int(first.split()[2]) >= count
    text = run(up, "statistics", "dos")
    assert "dos: no device has a number in a column of this name" in text


def test_of_fewer_devices_nothing_is_published_and_the_reason_says_so(up: Up) -> None:
    with Propeller.from_state(up.folder) as fl:
        before = fl.models.list()
        handle = fl.run(
            statistics_experiment(
                ["dose"], min_devices=4, timeout_s=5, retries=0, selection={"min_available": 3}
            )
        )
        with pytest.raises(ExperimentFailedError, match="4 devices needed, 3 there"):
            handle.wait(timeout=60)
        newest = fl.models.list()[0]
        assert newest["version"] <= before[0]["version"] + 1  # the first model, of zeros
        assert read_statistics(fl.model(newest["version"]))["dose"].count == 0


def test_rounds_of_too_few_are_refused_before_anyone_is_asked(up: Up) -> None:
    with (
        Propeller.from_state(up.folder) as fl,
        pytest.raises(
            PropellerError, match=r"selection\.count is 2, but sum with these parameters needs at least 3"
        ),
    ):
        fl.run(statistics_experiment(["dose"], selection={"count": 2}, min_updates=1))


def test_a_range_that_is_none_is_refused(up: Up) -> None:
    done = propeller("statistics", "dose", "--range", "dose", "--state", str(up.folder))
    assert done.returncode == 1
    assert "--range: 'dose' is not COLUMN=LOW:HIGH, as age=0:120" in done.stderr
