"""An experiment that is over, with what each service says of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from faults.stack import FaultyStack
from propeller.fl.round import RoundState

_PAGE = 1000


@dataclass(frozen=True)
class Ended:
    """An experiment that is over.

    Attributes:
        detail: what the coordinator says of it.
        rounds: its history.
        tasks: of all its rounds.
        models: the digest of each version that there is, by its number.
        lineages: where each version that a round made comes from.
    """

    detail: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    models: Mapping[int, str]
    lineages: Mapping[int, Mapping[str, Any]]

    @property
    def completed(self) -> list[Mapping[str, Any]]:
        """The rounds that made versions, in order."""
        return [one for one in self.rounds if one["state"] == RoundState.COMPLETED]

    @property
    def made(self) -> list[str]:
        """The digests of the versions that its rounds made, in order."""
        return [self.models[one["model_version"]] for one in self.completed]


class Records:
    """Reads what the services of a stack say; a version never changes and is read once."""

    def __init__(self, stack: FaultyStack) -> None:
        self._stack = stack
        self._models: dict[int, str] = {}
        self._lineages: dict[int, Mapping[str, Any]] = {}

    async def of(self, experiment_id: str) -> Ended:
        """An experiment that is over."""
        detail = await self._stack.get("coordinator", f"/experiments/{experiment_id}")
        rounds = (await self._stack.get("coordinator", f"/experiments/{experiment_id}/history"))["rounds"]
        tasks = await self.tasks(experiment_id)
        listed = (await self._stack.get("model-registry", "/models"))["versions"]
        for version in listed:
            if version not in self._models:
                await self._read(version)
        models = {version: self._models[version] for version in listed}
        return Ended(detail, rounds, tasks, models, self._lineages)

    async def tasks(self, experiment_id: str) -> list[Mapping[str, Any]]:
        """The tasks of all rounds of an experiment."""
        found: list[Mapping[str, Any]] = []
        while True:
            page = await self._stack.get("manager", f"/tasks?limit={_PAGE}&offset={len(found)}")
            found += page["tasks"]
            if len(page["tasks"]) < _PAGE:
                return [one for one in found if one["env"].get("EXPERIMENT_ID") == experiment_id]

    async def _read(self, version: int) -> None:
        model = await self._stack.get("model-registry", f"/models/{version}")
        model.pop("version", None)
        self._models[version] = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
        info = await self._stack.get("model-registry", f"/models/{version}/info")
        if info.get("lineage"):
            self._lineages[version] = info["lineage"]
