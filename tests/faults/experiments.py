"""The experiment that runs while faults are made: nothing about it is random, so that it always makes the same model."""

import asyncio
from typing import Any

import httpx

from faults.stack import PROPLETS, FaultyStack
from support.net import eventually
from support.python_programs import SOURCES, built
from support.stack import propeller

ENDS_S = 600.0
REPOSITORY = "softmax"

MODEL = {"w": [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], "b": [0.0, 0.0]}
HYPERPARAMS = {"epochs": 5, "lr": 0.05, "batch_size": 16}
UNUSED = 17_000
"""Numbers that the program does nothing with: an update that has them is kept in a file, not in the database."""

BOUNDS = {
    "max_samples": 10_000,
    "max_steps": 10_000,
    "max_norm": 50.0,
    "metric_ranges": {"accuracy": [0, 1], "loss": [0, 50]},
}
"""Far from what honest devices send."""


def push_program(stack: FaultyStack) -> str:
    """Push the program that all of them run; its reference."""
    reference = f"{stack.url('oci-registry').removeprefix('http://')}/{REPOSITORY}:v1"
    pushed = propeller("push", str(built(SOURCES / "softmax.py")), reference)
    assert pushed.returncode == 0, pushed.stderr
    return reference


class Experiments:
    """Submits experiments to a stack, and waits for their ends."""

    def __init__(self, stack: FaultyStack, rounds: int, *, large: bool = False) -> None:
        """``large`` ones have updates that the coordinator keeps in files."""
        self._stack, self._rounds, self._large = stack, rounds, large
        self._spec: dict[str, Any] = {}

    async def prepare(self) -> None:
        """Give the stack the program, and the model that every experiment starts from."""
        reference = await asyncio.to_thread(push_program, self._stack)
        model = {**MODEL, "unused": [0.0] * UNUSED} if self._large else MODEL
        stored = httpx.post(f"{self._stack.url('model-registry')}/models", json={"model": model})
        assert stored.status_code == 201, stored.text
        self._spec = {
            "program": reference,
            "rounds": self._rounds,
            "hyperparams": HYPERPARAMS,
            "model": {"version": stored.json()["version"]},
            "selection": {"seed": 7, "min_available": len(PROPLETS)},
            "update": BOUNDS,
            "timeout_s": 120,  # longer than a program is compiled for on a busy machine
            "retries": 100,  # a program that is away fails its rounds at once, one after the other
        }

    async def submit(self) -> str:
        """Begin an experiment; its id."""
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            answer = await http.post(f"{self._stack.url('coordinator')}/experiments", json=self._spec)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def detail(self, experiment_id: str) -> dict[str, Any]:
        """An experiment as it is."""
        found: dict[str, Any] = await self._stack.get("coordinator", f"/experiments/{experiment_id}")
        return found

    async def has_ended(self, experiment_id: str) -> bool:
        """Whether it is over."""
        return bool((await self.detail(experiment_id))["ended_at"])

    async def wait_begun(self, experiment_id: str, rounds: int) -> None:
        """Wait until so many rounds are done, or it is over."""

        async def has_come_so_far() -> bool:
            found = await self.detail(experiment_id)
            return bool(found["done"] >= rounds or found["ended_at"])

        await eventually(has_come_so_far, ENDS_S, f"{rounds} rounds of {experiment_id}")

    async def wait_ended(self, experiment_id: str) -> None:
        """Wait until it is over."""
        await eventually(lambda: self.has_ended(experiment_id), ENDS_S, f"the end of {experiment_id}")
