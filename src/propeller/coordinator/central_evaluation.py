"""Evaluations by the coordinator itself: a round with one participant, whose program runs in a sandbox of the coordinator's own.

Everything else is as in any round: its deadline, its end, its place in the history, and what is done after a crash.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import quote

from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.rounds import RoundRecord
from propeller.coordinator.service import Coordinator
from propeller.coordinator.updates import ReceivedUpdate
from propeller.errors import InvalidError, NotFoundError, PropellerError, UnavailableError
from propeller.fl.task_environment import task_environments
from propeller.process.background import BackgroundTasks, gather_or_cancel
from propeller.process.http import Answer, ServiceClient, ServiceError
from propeller.process.logs import get_logger
from propeller.process.opening import open_in_thread
from propeller.process.retry import doubling, retry
from propeller.protocol.evaluations import read_evaluation
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.requirements import Requirements
from propeller.protocol.rounds import DEFAULT_TIMEOUT_S, ChosenParticipants, ParticipantFailure, RoundStart
from propeller.protocol.task import encode_json
from propeller.protocol.updates import UpdateHeader
from propeller.wasm.task_inputs import TENSORS_FILE, TaskInputs

if TYPE_CHECKING:
    from propeller.program_host.native_programs import NativePrograms
    from propeller.program_host.programs import ProgramHost

T = TypeVar("T")

log = get_logger("coordinator")

PARTICIPANT = "coordinator"
"""The participant of such a round."""

NO_NATIVE = (
    "evaluate.on: the coordinator evaluates native programs where whoever runs it sets COORDINATOR_NATIVE_PYTHON, and it is not set "
    '(propeller up --native-python PYTHON does): evaluate on devices (on = "devices"), or have it set'
)
"""What is said of a native program where none runs."""

_RETRY_DELAYS_S = doubling(0.2, 15.0)


class DataStoreClient:
    """Data sets that the coordinator itself evaluates on."""

    def __init__(self, client: ServiceClient) -> None:
        """Call the data store through ``client``."""
        self._client = client

    async def dataset(self, dataset_id: str) -> bytes:
        """A data set as JSON.

        Raises:
            NotFoundError: there is none of this id.
            ServiceError: the data store does not answer.
        """
        return (await self._get(dataset_id, {})).content

    async def check(self, dataset_id: str) -> None:
        """See that there is a data set, which is not sent by a data store that knows ``If-None-Match``.

        Raises:
            NotFoundError: there is none of this id.
            ServiceError: the data store does not answer.
        """
        await self._get(dataset_id, {"if-none-match": "*"})

    async def _get(self, dataset_id: str, headers: Mapping[str, str]) -> Answer:
        path = f"/datasets/{quote(dataset_id, safe='')}"
        try:
            return await self._client.request("GET", path, headers=headers)
        except ServiceError as error:
            if error.kind is not NotFoundError:
                raise
            raise NotFoundError(
                f"evaluate.dataset: the data store has no data set {dataset_id!r}; POST one to {path}"
            ) from None


class CentralEvaluations:
    """Carries these rounds out. Close it."""

    def __init__(
        self,
        rounds: Coordinator,
        registry: ModelRegistryClient,
        data_store: DataStoreClient | None,
        open_programs: "Callable[[], ProgramHost]",
        native: "NativePrograms | None" = None,
    ) -> None:
        """Start nothing yet.

        Args:
            rounds: takes what they measure.
            registry: has the models.
            data_store: has the data sets; without one there are no such rounds.
            open_programs: makes what runs programs; called by the first of these rounds.
            native: which native programs that runs; ``None``: none.
        """
        self._rounds, self._registry, self._data_store = rounds, registry, data_store
        self._open_programs, self._native = open_programs, native
        self._programs: ProgramHost | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._background = BackgroundTasks("coordinator")

    async def check(self, spec: ExperimentSpec, *, brings_dataset: bool = False) -> None:
        """Refuse an experiment whose evaluations cannot be carried out here.

        Args:
            spec: what was asked for.
            brings_dataset: whether its data set is stored once nothing else is refused.

        Raises:
            InvalidError: naming the field.
            NotFoundError: its data set does not exist.
            ServiceError: the data store does not answer.
        """
        dataset = None if spec.evaluate is None else spec.evaluate.dataset
        if dataset is None:
            return
        if self._data_store is None:
            raise InvalidError(
                "evaluate.on: central evaluation needs a data store: set DATA_STORE_URL and restart the coordinator, or "
                "evaluate on devices"
            )
        if not brings_dataset:
            await self._data_store.check(dataset)

    def explain_native(self, spec: ExperimentSpec, program: str, required: Requirements) -> str | None:
        """Why a native program that requires this cannot be evaluated here; ``None``: it can, or need not."""
        if spec.evaluate is None or spec.evaluate.on != "central":
            return None
        if self._native is None:
            return NO_NATIVE
        reason = self._native.explain(program, required)
        return reason and f"evaluate.on: the coordinator cannot evaluate this program: {reason}"

    def prepare(self, spec: ExperimentSpec) -> None:
        """Have the program of an experiment fetched and compiled, before its first evaluation needs it."""
        if spec.evaluate is not None and spec.evaluate.on == "central":
            self._background.spawn(self._prepare(spec.program))

    def begin(self, record: RoundRecord, dataset: str) -> None:
        """Carry out a round that is stored, unless that is being done."""
        if record.round_id not in self._running:
            task = self._background.spawn(self._carry_out(record, dataset))
            self._running[record.round_id] = task
            task.add_done_callback(lambda _task: self._running.pop(record.round_id, None))

    def end(self, round_id: str) -> None:
        """Stop what is done for a round that is over."""
        task = self._running.get(round_id)
        if task is not None and task is not asyncio.current_task():  # it may be its own result that ended it
            task.cancel()

    async def close(self) -> None:
        """Stop. What is not done yet is done after the next start."""
        await self._background.close()
        if self._programs is not None:
            await self._programs.close()

    def _find_programs(self) -> "ProgramHost":
        if self._programs is None:
            self._programs = self._open_programs()
        return self._programs

    async def _prepare(self, program: str) -> None:
        try:
            await self._find_programs().prepare(program)
        except PropellerError as error:  # the round that needs it will say it again
            log.warning("program cannot be prepared", program=program, reason=str(error))

    async def _carry_out(self, record: RoundRecord, dataset: str) -> None:
        round_id = record.round_id
        chosen = await _until_stored(
            lambda: self._rounds.choose_participants(round_id, ChosenParticipants(participants=[PARTICIPANT]))
        )
        if not chosen.participants:  # it was cancelled
            return
        try:
            header = await retry(
                lambda: self._measure(record, dataset),
                delays=_RETRY_DELAYS_S,
                forever=True,
                on=lambda error: isinstance(error, PropellerError) and error.temporary,
                # Not to the deadline: the round would fail without the reason.
                timeout_s=(record.request.timeout_s or DEFAULT_TIMEOUT_S) / 2,
                failed=lambda error, _delay_s: log.warning(
                    "central evaluation is tried again", round_id=round_id, reason=str(error)
                ),
            )
            update = ReceivedUpdate(header, None, 0)
            await _until_stored(lambda: self._rounds.accept_update(update))
        except PropellerError as error:
            log.warning("central evaluation failed", round_id=round_id, reason=str(error))
            failure = ParticipantFailure(proplet_id=PARTICIPANT, reason=str(error))
            await _until_stored(lambda: self._rounds.record_failure(round_id, failure))

    async def _measure(self, record: RoundRecord, dataset: str) -> UpdateHeader:
        """Run the program.

        Raises:
            PropellerError: something it needs cannot be had, it failed, or what it left is not an evaluation.
        """
        # Here, as a coordinator without such rounds has no use for a sandbox.
        from propeller.wasm import folder_contents
        from propeller.wasm.program_run import ProgramRun

        start = record.request
        if not isinstance(start, RoundStart):
            raise TypeError(f"{record.round_id} is not a round of an experiment")
        programs = self._find_programs()
        program = await programs.prepare(start.task_wasm_image)
        folder = programs.inputs.new()
        try:
            inputs = _begin_inputs(start)
            version = record.round.plan.base_version
            await gather_or_cancel(
                self._give_model(version, folder, inputs),
                self._give_dataset(dataset, inputs),
                self._give_strategy(version, folder, start, inputs),
            )
            run = ProgramRun(record.round_id, program.digest, env=inputs.env, files=inputs.files)
            outcome = await programs.run(run, start.limits)
        finally:
            await asyncio.to_thread(folder_contents.remove, folder)
        return read_evaluation(
            outcome.stdout,
            left_tensors=TENSORS_FILE in outcome.out_files,
            round_id=record.round_id,
            proplet_id=PARTICIPANT,
        )

    async def _give_model(self, version: int, folder: Path, inputs: TaskInputs) -> None:
        """Give the model, by a file of a folder."""
        file = folder / "model.safetensors"
        with _disk_errors(folder), await open_in_thread(lambda: _create(file)) as target:
            await self._registry.write_document(version, target)
            size = target.tell()
        inputs.files[file.name] = file
        if size <= LARGE_BYTES:
            inputs.add_document("model.json", "MODEL_DATA", await self._registry.json_document(version))

    async def _give_dataset(self, dataset: str, inputs: TaskInputs) -> None:
        if self._data_store is None:
            raise UnavailableError("evaluate.dataset: set DATA_STORE_URL and restart the coordinator")
        inputs.add_document("dataset.json", "DATASET_DATA", await self._data_store.dataset(dataset))

    async def _give_strategy(self, version: int, folder: Path, start: RoundStart, inputs: TaskInputs) -> None:
        """Give what the strategy has for devices of the server state, if it says that there is something."""
        if start.strategy and start.strategy.get("tensors"):
            file = folder / "strategy.safetensors"
            with _disk_errors(folder), await open_in_thread(lambda: _create(file)) as target:
                if await self._registry.write_state(version, target):
                    inputs.files[file.name] = file


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"the folder {folder.parent} for models cannot be used: {error.strerror}; set COORDINATOR_CACHE"
        ) from error


def _create(file: Path) -> BinaryIO:
    file.parent.mkdir(mode=0o700, exist_ok=True)
    return file.open("wb")


def _begin_inputs(start: RoundStart) -> TaskInputs:
    """What is known without asking anyone."""
    inputs = TaskInputs(
        {
            "ROUND_ID": start.round_id,
            "MODEL_URI": start.model_uri,
            "PROPLET_ID": PARTICIPANT,
            **task_environments(start, [PARTICIPANT])[PARTICIPANT],
        }
    )
    if start.hyperparams is not None:
        text = encode_json(start.hyperparams)
        inputs.env["HYPERPARAMS"] = text.decode()
        inputs.files["hyperparams.json"] = text
    return inputs


async def _until_stored(work: Callable[[], Awaitable[T]]) -> T:
    """Tell the round something, however long the database takes."""
    return await retry(
        work,
        delays=_RETRY_DELAYS_S,
        forever=True,
        on=lambda error: not isinstance(error, PropellerError) or error.temporary,
        failed=lambda error, _delay_s: log.error("could not be stored, trying again", exc_info=error),
    )
