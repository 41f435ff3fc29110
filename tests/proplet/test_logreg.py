"""The shipped program on a proplet: trains on the device's data, and says so in the guide's words."""

from collections.abc import Callable
from importlib import resources
from typing import Any

from support.net import eventually
from support.proplet import World

IMAGE = "registry.test/fl-client-wasm:latest"


async def test_the_shipped_program_trains_on_the_devices_data(
    world: World, log_lines: Callable[[], list[Any]]
) -> None:
    world.peers.programs[IMAGE] = (resources.files("propeller.data") / "logreg.wasm").read_bytes()
    world.peers.chunk_size = 10_000
    me = await world.join()
    world.services.datasets[me] = {
        "schema": "fl-demo-dataset-v1",
        "proplet_id": me,
        "data": [{"x": [i % 10 / 10, i % 5 / 5, i % 3 / 3], "y": int(i % 10 > 4)} for i in range(64)],
        "size": 64,
    }
    env = {
        "ROUND_ID": "r-1",
        "MODEL_URI": "fl/models/global_model_v0",
        "HYPERPARAMS": '{"epochs":5,"lr":0.5,"batch_size":16}',
    }
    tasks = [
        await world.peers.start(me, name=f"fl-round-r-1-{me}", image_url=IMAGE, env=env) for _ in range(2)
    ]
    results = [await world.peers.result_of(task) for task in tasks]
    assert [one["error"] for one in results] == [None, None]
    first, second = world.services.updates
    assert first == second  # it is deterministic
    assert (first["num_samples"], first["base_model_uri"]) == (64, env["MODEL_URI"])
    assert first["update"]["w"][0] > 0.1
    assert 0 < first["metrics"]["loss"] < 0.7
    assert results[0]["results"]["metrics"] == first["metrics"]
    said = [line["event"] for line in log_lines() if line.get("task_id") == tasks[0]]
    await eventually(lambda: any(line.startswith("DEBUG: Initial model - w: [0.000000") for line in said))
    assert "Loaded dataset with 64 samples from Local Data Store" in "\n".join(said)
