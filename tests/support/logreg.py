"""Running the logistic regression: the shipped one in C, and the one in Go."""

import json
from pathlib import Path
from typing import Any

from propeller.wasm.program_run import Limits, ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from support.guests import add

_VARIABLES = {"model": "MODEL_DATA", "dataset": "DATASET_DATA", "hyperparams": "HYPERPARAMS"}


class Logreg:
    """The program in a sandbox; call it with documents (or texts)."""

    def __init__(self, sandbox: Sandbox, program: Path) -> None:
        self._sandbox, self._program = sandbox, program
        self.log: list[str] = []

    async def __call__(
        self, model: Any, dataset: Any, hyperparams: Any = None, *, by_env: bool = False, **env: str
    ) -> RunOutcome:
        """Run it once; ``log`` has its lines."""
        given = {"model": model, "dataset": dataset, "hyperparams": hyperparams}
        texts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in given.items()
            if value is not None
        }
        env = {"ROUND_ID": "r1", "PROPLET_ID": "p1", "MODEL_URI": "fl/models/global_model_v0", **env}
        if by_env:
            env |= {_VARIABLES[name]: text for name, text in texts.items()}
        files = {} if by_env else {f"{name}.json": text.encode() for name, text in texts.items()}
        self.log = []
        digest = await add(self._sandbox, self._program.read_bytes())
        limits = Limits(wall_time_s=60)
        run = ProgramRun("logreg", digest, env=env, files=files, limits=limits)
        return await self._sandbox.run(run, self.log.append)

    async def update(self, *given: Any, **env: Any) -> dict[str, Any]:
        """Run it; the document it prints."""
        outcome = await self(*given, **env)
        assert outcome.error is None, (outcome, self.log)
        document: dict[str, Any] = json.loads(outcome.stdout)
        return document
