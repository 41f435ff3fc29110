"""A proplet with data of its own: programs get it, no service does, and no data store is asked."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from propeller.errors import StartError
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import InputFetcher, ServiceClients
from propeller.proplet.large_files import LargeFiles
from propeller.proplet.local_data import LocalData
from propeller.proplet.main import main
from support.proplet import World, settings

SECRET = "731.25"


def rows(file: Path, *values: str) -> Path:
    """Write a table; its time is another each time, however coarse the file system's clock."""
    file.write_text("a,y\n" + "".join(f"{value},1\n" for value in values))
    stamp = file.stat().st_mtime_ns + len(values) * 1_000_000
    os.utime(file, ns=(stamp, stamp))
    return file


def fetcher(folder: Path, data: LocalData) -> InputFetcher:
    services = ServiceClients({"DATA_STORE_URL": "http://127.0.0.1:9"})  # nobody is there to be asked
    return InputFetcher(services, "me", LargeFiles(folder / "large"), data)


async def dataset(fetch: InputFetcher, folder: Path, **env: str) -> Any:
    inputs = await fetch.fetch({"ROUND_ID": "r", "DATA_STORE_URL": "http://127.0.0.1:9", **env}, folder)
    given = inputs.files["dataset.json"]
    assert isinstance(given, bytes)
    assert inputs.env["DATASET_DATA"].encode() == given
    return json.loads(given)


async def test_a_program_is_given_it_and_what_it_is_later(tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.csv", "1", "2")
    data = LocalData(file, None)
    await data.open()
    fetch = fetcher(tmp_path, data)
    assert (await dataset(fetch, tmp_path))["size"] == 2
    split = json.dumps({"holdout": 0.5, "seed": 0})
    trained = await dataset(fetch, tmp_path, FL_SPLIT=split, FL_MODE="train")
    held_out = await dataset(fetch, tmp_path, FL_SPLIT=split, FL_MODE="evaluate")
    assert sorted(one["x"][0] for part in (trained, held_out) for one in part["data"]) == [1, 2]
    rows(file, "1", "2", "3", "4")
    assert (await dataset(fetch, tmp_path))["size"] == 4
    assert (await dataset(fetch, tmp_path, FL_SPLIT=split, FL_MODE="train"))["size"] == 2


async def test_what_is_wrong_with_it_stays_in_the_log_of_the_device(
    tmp_path: Path, log_lines: Callable[[], list[Any]]
) -> None:
    file = rows(tmp_path / "rows.csv", "1", "2")
    data = LocalData(file, None)
    await data.open()
    rows(file, "1", "2", "secret")
    await data.look()
    await data.look()
    with pytest.raises(TaskError) as error:
        await dataset(fetcher(tmp_path, data), tmp_path)
    assert "secret" not in str(error.value)
    assert "the log on the device" in str(error.value)
    faults = [line for line in log_lines() if line["log_level"] == "error"]
    assert len(faults) == 1
    assert "line 4: a is 'secret'" in faults[0]["reason"]
    file.unlink()
    with pytest.raises(TaskError):
        await data.dataset()
    rows(file, "5")
    await data.look()
    assert (await data.dataset()).samples == 1


async def test_other_columns_than_before_are_warned_of(
    tmp_path: Path, log_lines: Callable[[], list[Any]]
) -> None:
    file = rows(tmp_path / "rows.csv", "1", "2")
    data = LocalData(file, None)
    await data.open()
    file.write_text("a,b,y\n1,2,1\n")
    await data.look()
    (warned,) = (line for line in log_lines() if line["log_level"] == "warning")
    assert (warned["before"], warned["now"]) == ("x float32 [1], y int64", "x float32 [2], y int64")


async def test_a_proplet_does_not_start_on_data_that_cannot_be_read(world: World, tmp_path: Path) -> None:
    import asyncio

    chosen = settings(world.peers, world.services, tmp_path / "s", world.port, data=tmp_path / "none.csv")
    with pytest.raises(StartError, match=r"PROPLET_DATA: data: there is no file or folder"):
        await main(chosen, asyncio.Event())


async def test_a_task_runs_on_it_and_no_service_sees_it_or_is_asked(world: World, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.csv", SECRET, "2")
    me = await world.join(data=file)
    model = "fl/models/global_model_v0"
    update = {
        "round_id": "r-1",
        "proplet_id": me,
        "base_model_uri": model,
        "num_samples": 2,
        "metrics": {},
        "update": {"w": [1.0, 1.0, 1.0], "b": 1.0},
    }
    env = {"ROUND_ID": "r-1", "MODEL_URI": model, "REPLY": json.dumps(update)}
    result = await world.peers.result_of(await world.peers.start(me, env=env))
    assert result["error"] is None
    assert world.services.updates == [update]
    assert not any(path.startswith("/datasets") for path, _ in world.services.asked)
    assert SECRET not in json.dumps(world.peers.received)
    assert not any(SECRET.encode() in one.read_bytes() for one in world.folder.rglob("*") if one.is_file())
