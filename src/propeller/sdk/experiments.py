"""Experiments of a stack: submitted with their programs, data and first model, and found again."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from propeller.errors import ConflictError
from propeller.protocol.experiments import ExperimentSpec, ModelChoice
from propeller.sdk.addresses import devices_of_stack
from propeller.sdk.connection import Connection
from propeller.sdk.experiment import Experiment, Fleet, assign_data
from propeller.sdk.handle import AsyncExperimentHandle, find_experiment
from propeller.sdk.models import AsyncModels
from propeller.sdk.programs import PushedProgram, is_file_name, program_file
from propeller.sdk.values import SAFETENSORS, decode_model, encode_model, plain_dataset, same_model


class AsyncExperiments(ABC):
    """The experiments of a stack, and the strategies that they can name: what ``AsyncPropeller`` can do with them."""

    _connection: Connection

    @abstractmethod
    async def proplets(self, *, alive: bool | None = None) -> list[dict[str, Any]]:
        """The proplets that the manager knows; ``alive`` narrows to those that are, or are not."""

    @abstractmethod
    async def push_program(self, file: str | Path, name: str | None = None) -> PushedProgram:
        """Push a program to the stack's registry."""

    async def run(self, experiment: Experiment, *, folder: str | Path = ".") -> AsyncExperimentHandle:
        """Submit an experiment; returns at once. It goes on without this program.

        A program that is a ``.py`` or ``.wasm`` file here is pushed to the stack's registry before (``push_program``), that of a strategy too.
        Its data and its first model are stored, once the coordinator has said that it would take the experiment.
        One without an id of its own is another one each time, unless the last run of it ended in an error: then the same one is submitted
        again, as it may have been begun.

        Args:
            experiment: what to do.
            folder: which the paths of program files are from.

        Raises:
            PropellerError: something is wrong with it; the text names the field.
        """
        with experiment.submission() as spec:
            return await self._submit(experiment, await self._push_files(spec, Path(folder)))

    async def _push_files(self, spec: ExperimentSpec, folder: Path) -> ExperimentSpec:
        changes: dict[str, Any] = {}
        if is_file_name(spec.program):
            changes["program"] = (
                await self.push_program(program_file(spec.program, folder), spec.name)
            ).reference
        if spec.strategy.program is not None and is_file_name(spec.strategy.program):
            pushed = await self.push_program(program_file(spec.strategy.program, folder))
            changes["strategy"] = spec.strategy.model_copy(update={"program": pushed.reference})
        return spec.model_copy(update=changes) if changes else spec

    async def _submit(self, experiment: Experiment, spec: ExperimentSpec) -> AsyncExperimentHandle:
        names, data = spec.selection.names, {}
        if names is not None or experiment.data is not None:
            fleet = await self._fleet()
            if names is not None:
                names = fleet.resolve(names, "selection.names")
                selection = spec.selection.model_copy(update={"names": names})
                spec = spec.model_copy(update={"selection": selection})
            data = {name: plain_dataset(one) for name, one in assign_data(experiment, names, fleet).items()}
        model = encode_model(experiment.model) if isinstance(experiment.model, Mapping) else None
        if data or model is not None:
            spec = await self._store_inputs(spec, model, data)
        summary = await self._connection.ask("POST", "coordinator", "/experiments", json=spec.to_json())
        return AsyncExperimentHandle(self._connection, summary["id"], summary)

    async def _store_inputs(
        self, spec: ExperimentSpec, model: bytes | None, data: Mapping[str, Any]
    ) -> ExperimentSpec:
        """Store the data and the first model of an experiment; returns it with the model's version.

        The coordinator is asked before whether it would take the experiment: what is stored for one that is refused stays.
        For one that there is already under this id, nothing is stored.
        """
        asked = spec.to_json()
        if model is None:
            asked.setdefault("model", {"version": "latest"})
        central = spec.evaluate.dataset if spec.evaluate is not None else None
        checked = await self._connection.ask(
            "POST",
            "coordinator",
            "/experiments/check",
            json=asked,
            params={"brings_dataset": "true"} if central in data else {},
        )
        if not checked["exists"]:
            for name, dataset in data.items():
                await self._put_dataset(name, dataset)
        if model is None:
            return spec
        version = (
            await self._version_that_began(str(spec.id), model)
            if checked["exists"]
            else await self._put_model(model)
        )
        return spec.model_copy(update={"model": ModelChoice(version=version)})

    async def _version_that_began(self, experiment_id: str, model: bytes) -> int:
        """The version that an experiment was begun from, which must be this model.

        Raises:
            ConflictError: it is another one.
        """
        status = await self._connection.ask("GET", "coordinator", f"/experiments/{experiment_id}")
        version = status["spec"].get("model", {}).get("version")
        if not isinstance(version, int) or not same_model(
            await AsyncModels(self._connection).arrays(version), decode_model(model)
        ):
            raise ConflictError(
                f"id: experiment {experiment_id} exists and began from another model; choose another id"
            )
        return version

    async def _put_model(self, content: bytes) -> int:
        headers = {"Content-Type": SAFETENSORS}
        answer = await self._connection.ask(
            "POST", "model_registry", "/models", content=content, headers=headers
        )
        return int(answer["version"])

    async def _put_dataset(self, proplet_id: str, body: Mapping[str, Any]) -> None:
        await self._connection.ask("POST", "data_store", f"/datasets/{proplet_id}", json=body)

    async def experiment(self, experiment: str) -> AsyncExperimentHandle:
        """An experiment that was submitted before, by its id; or the newest one of a name.

        Raises:
            InvalidError: it is neither.
            NotFoundError: there is none with this id or name.
        """
        return await find_experiment(self._connection, experiment)

    async def experiments(
        self, state: str | None = None, limit: int = 100, *, name: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest experiments, newest first; narrowed to those that are ``running``, ``completed`` …, or to a name."""
        wanted = {"state": state, "name": name}
        params = {"limit": limit} | {field: value for field, value in wanted.items() if value is not None}
        answer = await self._connection.ask("GET", "coordinator", "/experiments", params=params)
        found: list[dict[str, Any]] = answer["experiments"]
        return found

    async def strategies(self) -> list[dict[str, Any]]:
        """The strategies that the coordinator has: ``name``, ``summary``, ``paper``, ``parameters``, ``modes``, ``needs_device_state``.

        One whose package cannot be loaded has ``name`` and ``error``.
        """
        answer = await self._connection.ask("GET", "coordinator", "/strategies")
        found: list[dict[str, Any]] = answer["strategies"]
        return found

    async def strategy(self, name: str) -> dict[str, Any]:
        """One strategy, as ``strategies`` has it; of each parameter ``name``, ``type``, ``default``, ``required``, ``range``, ``description``.

        Raises:
            NotFoundError: there is none of this name; the text has those that there are.
        """
        path = f"/strategies/{quote(name, safe='')}"
        found: dict[str, Any] = await self._connection.ask("GET", "coordinator", path)
        return found

    async def _fleet(self) -> Fleet:
        """The devices by their names and ids."""
        return Fleet(await self.proplets(), devices_of_stack(self._connection.stack))
