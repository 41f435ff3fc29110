"""Starting rounds: an experiment, asked for over HTTP or MQTT and however often, starts one task a participant, once."""

import asyncio
import uuid
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from propeller.errors import (
    ConflictError,
    PropellerError,
    TooLargeError,
    UnavailableError,
    UnprocessableError,
)
from propeller.manager.coordinator_client import CoordinatorClient, RoundReporter
from propeller.manager.dispatcher import Dispatcher
from propeller.manager.fleet import Fleet, PropletRecord
from propeller.manager.round_repository import RoundRepository, SkippedParticipant, StartedRound
from propeller.manager.task import Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.manager.task_runner import TaskRunner
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger
from propeller.protocol.models import SentModel
from propeller.protocol.rounds import Experiment
from propeller.protocol.task import encode_json
from propeller.store.database import Database

log = get_logger("manager")

NO_COORDINATOR = (
    "federated learning is off: set COORDINATOR_URL to the coordinator's address and restart the manager"
)

_MAX_NAMED_PARTICIPANTS = 20
_LIST_LIVE = "GET /proplets?status=active lists the live ones"
_NOT_FOUND = f"participants are client ids, not instance names; {_LIST_LIVE}"
_NOT_ALIVE = f"start it again, or leave it out; {_LIST_LIVE}"


class RoundStarter:
    """Starts rounds, each once."""

    def __init__(
        self,
        database: Database,
        rounds: RoundRepository,
        tasks: TaskRepository,
        locks: KeyedLocks,
        fleet: Fleet,
        runner: TaskRunner,
        dispatcher: Dispatcher,
        coordinator: CoordinatorClient | None,
        reporter: RoundReporter,
    ) -> None:
        """``locks`` are those of the rounds, held by whoever starts one or resumes its tasks."""
        self._database, self._rounds, self._tasks = database, rounds, tasks
        self._locks, self._fleet, self._runner = locks, fleet, runner
        self._dispatcher, self._coordinator, self._reporter = dispatcher, coordinator, reporter

    async def start(
        self,
        experiment: Experiment,
        *,
        given: Collection[str] | None = None,
        must_reach_quorum: bool = True,
    ) -> StartedRound:
        """Start a round, unless it was started before.

        The coordinator is configured first, then the tasks are stored in one transaction with the round, then their
        starts are published. After a crash in between, whoever asks again or the next connect to the broker completes it.

        Args:
            experiment: the round.
            given: the fields that its sender set and that must equal those of a round started before; all if absent.
            must_reach_quorum: refuse if fewer participants than ``k_of_n`` can be launched.

        Raises:
            ConflictError: another round had this id.
            TooLargeError: its hyperparameters do not fit in a message.
            UnprocessableError: too few participants can be launched.
            UnavailableError: there is no coordinator, or the broker cannot be reached.
            ServiceError: the coordinator refuses or does not answer. Nothing is started then, as in the cases above.
        """
        if self._coordinator is None:
            raise UnavailableError(NO_COORDINATOR)
        async with self._locks.holding(experiment.round_id):
            known = await self._rounds.find(experiment.round_id)
            if known is not None:
                _check_same(known.experiment, experiment, given)
                return known
            if too_long := self._dispatcher.explain_too_long(experiment.hyperparams):
                raise TooLargeError(too_long)
            await self._dispatcher.require_connection()
            proplets, skipped = self._split_participants(experiment)
            _check_quorum(experiment, len(proplets), skipped, must_reach_quorum=must_reach_quorum)
            digest = await self._coordinator.configure(experiment)
            started = StartedRound(experiment, self._fleet.clock(), skipped)
            await self._launch(started, proplets, digest)
            try:
                await self._dispatcher.announce(experiment.to_round_start())
            except PropellerError as error:
                log.warning("round is not announced", round_id=experiment.round_id, reason=str(error))
        return started

    def explain_too_long(self, hyperparams: Any) -> str | None:
        """As the dispatcher."""
        return self._dispatcher.explain_too_long(hyperparams)

    async def launch_chosen(
        self,
        experiment: Experiment,
        model_digest: str | None,
        env: Mapping[str, Mapping[str, str]],
        model: SentModel | None = None,
    ) -> None:
        """Launch a round whose participants the coordinator has on record. The caller holds the round's lock.

        Args:
            experiment: the round.
            model_digest: of its base model, by which participants may read it.
            env: what the program of each participant is told beside what it is told in every round.
            model: its base model, if it is small: it goes out with the starts.
        """
        proplets, skipped = self._split_participants(experiment)
        started = StartedRound(experiment, self._fleet.clock(), skipped)
        await self._launch(started, proplets, model_digest, env, model)

    def _split_participants(
        self, experiment: Experiment
    ) -> tuple[list[PropletRecord], list[SkippedParticipant]]:
        """The participants that can be launched, and the others."""
        proplets, skipped = [], []
        for proplet_id in experiment.participants:
            line = log.bind(round_id=experiment.round_id, proplet_id=proplet_id)
            proplet = self._fleet.get(proplet_id)
            if proplet is None:
                line.warning("skipping participant: proplet not found", error="not found", remedy=_NOT_FOUND)
                skipped.append(SkippedParticipant(proplet_id, f"proplet not found: {_NOT_FOUND}"))
            elif not self._fleet.is_alive(proplet_id):
                last = proplet.last_alive_at
                line.warning(
                    "skipping participant: proplet is not alive", last_alive_at=last, remedy=_NOT_ALIVE
                )
                reason = f"proplet is not alive (last heartbeat: {last or 'never'}): {_NOT_ALIVE}"
                skipped.append(SkippedParticipant(proplet_id, reason))
            else:
                proplets.append(proplet)
        return proplets, skipped

    async def _launch(
        self,
        started: StartedRound,
        proplets: list[PropletRecord],
        model_digest: str | None,
        env: Mapping[str, Mapping[str, str]] | None = None,
        model: SentModel | None = None,
    ) -> None:
        experiment = started.experiment
        common = {} if model_digest is None else {"MODEL_DIGEST": model_digest}
        tasks = [
            _task(experiment, proplet, started.started_at, {**common, **(env or {}).get(proplet.id, {})})
            for proplet in proplets
        ]
        async with self._database.transaction() as connection:
            await self._rounds.insert(connection, started)
            if tasks:
                await self._tasks.insert(connection, tasks)
        for one in started.skipped:
            self._reporter.report(experiment.round_id, one.proplet_id, one.failure)
        published = await asyncio.gather(
            *(
                self._runner.publish_start(task, proplet, model)
                for task, proplet in zip(tasks, proplets, strict=True)
            )
        )
        await self._tasks.mark_running(
            [task.id for task, has_gone_out in zip(tasks, published, strict=True) if has_gone_out]
        )


def _task(experiment: Experiment, proplet: PropletRecord, moment: datetime, more: Mapping[str, str]) -> Task:
    env = {"ROUND_ID": experiment.round_id, "MODEL_URI": experiment.model_ref, **more}
    if experiment.hyperparams is not None:
        env["HYPERPARAMS"] = encode_json(experiment.hyperparams).decode()
    spec = TaskSpec.model_construct(
        name=f"fl-round-{experiment.round_id}-{proplet.id}",
        image_url=experiment.task_wasm_image,
        env=env,
        proplet_id=proplet.id,
        limits=experiment.limits,
    )
    return Task(
        id=str(uuid.uuid4()),
        spec=spec,
        state=TaskState.SCHEDULED,
        created_at=moment,
        proplet_id=proplet.id,
        round_id=experiment.round_id,
        start_time=moment,
        updated_at=moment,
    )


def _check_same(known: Experiment, experiment: Experiment, given: Collection[str] | None) -> None:
    """Refuse an experiment that differs from the one that was started under its round id."""
    compared = set(Experiment.model_fields if given is None else given)
    if not known.experiment_id or not experiment.experiment_id:
        compared.discard("experiment_id")  # round starts over MQTT have none
    different = [name for name in sorted(compared) if getattr(known, name) != getattr(experiment, name)]
    if different:
        raise ConflictError(
            f"round {experiment.round_id} was already started with another {', '.join(different)}: "
            "use a new round_id"
        )
    log.debug("round was already started", round_id=experiment.round_id)


def _check_quorum(
    experiment: Experiment, launchable: int, skipped: list[SkippedParticipant], *, must_reach_quorum: bool
) -> None:
    # Whoever sets min_updates also accepts a round that its deadline closes with that many updates.
    needed = experiment.min_updates if "min_updates" in experiment.model_fields_set else experiment.k_of_n
    if launchable >= needed:
        return
    reasons = "; ".join(f"{one.proplet_id}: {one.reason}" for one in skipped[:_MAX_NAMED_PARTICIPANTS])
    if launchable == 0:
        raise UnprocessableError(
            f"round {experiment.round_id} has no participant that can be launched: {reasons}"
        )
    if must_reach_quorum:
        raise UnprocessableError(
            f"round {experiment.round_id} needs {needed} updates and only {launchable} of its "
            f"{len(experiment.participants)} participants can be launched: lower k_of_n, or correct this: {reasons}",
        )
    log.warning(
        "round can end without its quorum only: fewer participants than k_of_n are launched",
        round_id=experiment.round_id,
        k_of_n=experiment.k_of_n,
        launched=launchable,
    )
