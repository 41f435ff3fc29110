"""A stack that is ended while a round runs, and started again: the round goes on, and completes."""

import json
from pathlib import Path

import httpx

from support.net import eventually
from support.stack import Up, running_stack

TRAINING = {"epochs": 400_000, "lr": 0.01, "batch_size": 16}
"""About two seconds."""


def begin(up: Up) -> None:
    """Start a round of one proplet and wait until that trains."""
    body = {
        "round_id": "r-1",
        "model_ref": "fl/models/global_model_v0",
        "participants": up.ids(),
        "hyperparams": TRAINING,
        "timeout_s": 120,
        "task_wasm_image": next(iter(up.stack["images"].values())),
    }
    answer = httpx.post(f"{up.url('manager')}/fl/experiments", json=body, timeout=20)
    assert answer.status_code == 200, answer.text


async def ended_round(up: Up) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=up.url("coordinator"), timeout=70) as http:
        return dict((await http.get("/rounds/r-1/complete?wait_s=50")).json())


def trained(folder: Path) -> int:
    """How often the program was begun."""
    return (folder / "logs" / "proplet-1.log").read_text().count("Executing task")


async def test_a_round_goes_on_after_restarts(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with running_stack(folder, "--proplets", "1") as up:
        begin(up)
        await eventually(lambda: trained(folder) == 1)
    with running_stack(folder, "--proplets", "1") as up:
        await eventually(lambda: trained(folder) == 2, timeout=20)
        processes = up.processes()
        for (
            process
        ) in processes:  # else one may still tell of the end of another, as a proplet of its sandbox's
            process.suspend()
        for process in reversed(processes):
            process.kill()
        up.process.wait(10)
        (folder / "stack.json").unlink()  # left, and no sign that the next one is ready
    with running_stack(folder, "--proplets", "1") as up:
        status = await ended_round(up)
    assert (status["state"], status["num_updates"]) == ("completed", 1), status
    log = [json.loads(line) for line in (folder / "logs" / "manager.log").read_text().splitlines()]
    assert sum(line["msg"].startswith("launched task") for line in log) == 3
