"""Rounds: an experiment, told over HTTP or MQTT and however often, starts one task a participant, once."""

import asyncio
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select

from propeller.errors import ConflictError, PropellerError, UnavailableError, UnprocessableError
from propeller.manager import tables
from propeller.manager.coordinator import Coordinator
from propeller.manager.dispatch import Dispatcher
from propeller.manager.failures import Failures
from propeller.manager.proplets import Fleet, Proplet
from propeller.manager.runs import Runs
from propeller.manager.task import State, Task, TaskSpec
from propeller.manager.task_store import TaskStore
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger
from propeller.protocol.rounds import Experiment
from propeller.protocol.task import encode_json
from propeller.store.database import Database

log = get_logger("manager")

NO_COORDINATOR = (
    "federated learning is off: set COORDINATOR_URL to the coordinator's address and restart the manager"
)
OVER_S = 10.0
"""How long a task may still run after its round's deadline: its result may be under way, and says more than a stop."""

_LIVE = "GET /proplets?status=active lists the live ones"
_NOT_FOUND = f"participants are client ids, not instance names; {_LIVE}"
_NOT_ALIVE = f"start it again, or leave it out; {_LIVE}"


@dataclass(frozen=True)
class Skipped:
    """A participant that gets no task, and why."""

    proplet_id: str
    reason: str


@dataclass(frozen=True)
class StartedRound:
    """A round that was started, now or before."""

    experiment: Experiment
    skipped: list[Skipped] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The answer of ``POST /fl/experiments``."""
        answer: dict[str, Any] = {
            "experiment_id": self.experiment.experiment_id,
            "round_id": self.experiment.round_id,
            "status": "configured",
        }
        if self.skipped:
            answer["skipped"] = [vars(one) for one in self.skipped]
        return answer


class Rounds:
    """Starts rounds. Each is remembered for good, so that a message or request that comes again starts nothing."""

    def __init__(
        self,
        database: Database,
        fleet: Fleet,
        store: TaskStore,
        runs: Runs,
        dispatcher: Dispatcher,
        coordinator: Coordinator | None,
        failures: Failures,
    ) -> None:
        self._database, self._fleet, self._store, self._runs = database, fleet, store, runs
        self._dispatcher, self._coordinator, self._failures = dispatcher, coordinator, failures
        self._locks = KeyedLocks()

    async def start(
        self, experiment: Experiment, *, given: Collection[str] | None = None, must_reach_quorum: bool = True
    ) -> StartedRound:
        """Start a round, unless it was started before.

        The coordinator is told first, then the tasks are stored in one transaction with the round, then their
        starts are published; a crash in between is made good by whoever asks again, or at the next connect.

        Args:
            experiment: the round.
            given: the fields that its sender gave and that must equal those of a round started before; all if absent.
            must_reach_quorum: refuse if fewer participants than ``k_of_n`` can be launched.

        Raises:
            ConflictError: another round had this id; 422, too few participants can be launched; 503, there is no
                coordinator or no broker. Nothing is started then.
            ServiceError: the coordinator refuses or does not answer.
        """
        if self._coordinator is None:
            raise UnavailableError(NO_COORDINATOR)
        async with self._locks.holding(experiment.round_id):
            known = await self._find(experiment.round_id)
            if known is not None:
                return _same(known, experiment, given)
            await self._dispatcher.require_connection()
            proplets, skipped = self._muster(experiment)
            _check_quorum(experiment, len(proplets), skipped, must_reach_quorum=must_reach_quorum)
            await self._coordinator.configure(experiment)
            await self._launch(experiment, proplets, skipped)
        return StartedRound(experiment, skipped)

    async def resume(self) -> None:
        """Publish what was decided and may not have gone out: after a crash, a lost connection, a slow broker."""
        over: dict[str, datetime | None] = {**await self._over(State.SCHEDULED)}
        for task in await self._store.in_state(State.SCHEDULED):
            round_id = task.round_id or ""
            async with self._locks.holding(round_id):  # a round that is being launched now is not resumed
                if self._coordinator is not None and round_id and round_id not in over:
                    collects = await self._coordinator.collects(round_id)
                    over[round_id] = None if collects else self._fleet.clock()
                await self._runs.resume(task.id, over.get(round_id))

    async def stop_late(self) -> None:
        """Stop what still runs for rounds that ended: it would keep the proplets' places from the rounds after."""
        over = await self._over(State.RUNNING, timedelta(seconds=OVER_S))
        for task in await self._store.in_state(State.RUNNING) if over else ():
            if (ended := over.get(task.round_id or "")) is not None:
                try:
                    await self._runs.stop(
                        task.id,
                        f"stopped: it still ran when its round ended at {ended}",
                        round_is_over=True,
                    )
                except PropellerError as error:  # it ended by itself, or the broker is away
                    log.info("late task is not stopped", task_id=task.id, reason=str(error))

    async def report_failures(self) -> None:
        """Tell the coordinator of every failure in rounds that may still be open: a crash may have kept it from it."""
        tasks, rounds = tables.tasks.c, tables.rounds.c
        is_open = rounds.deadline > tables.to_micros(self._fleet.clock())
        failed = (
            select(tasks.round_id, tasks.proplet_id, tasks.error)
            .join(tables.rounds, rounds.round_id == tasks.round_id)
            .where(tasks.state == int(State.FAILED), is_open)
        )
        async with self._database.transaction() as connection:
            found = [(row[0], row[1], row[2]) for row in await connection.execute(failed)]
            for row in await connection.execute(select(rounds.round_id, rounds.skipped).where(is_open)):
                found += [(row.round_id, one["proplet_id"], one["reason"]) for one in row.skipped]
        for round_id, proplet_id, reason in found:
            self._failures.report(round_id, proplet_id, reason)

    def _muster(self, experiment: Experiment) -> tuple[list[Proplet], list[Skipped]]:
        proplets, skipped = [], []
        for proplet_id in experiment.participants:
            line = log.bind(round_id=experiment.round_id, proplet_id=proplet_id)
            proplet = self._fleet.get(proplet_id)
            if proplet is None:
                line.warning("skipping participant: proplet not found", error="not found", remedy=_NOT_FOUND)
                skipped.append(Skipped(proplet_id, f"proplet not found: {_NOT_FOUND}"))
            elif not self._fleet.is_alive(proplet_id):
                last = proplet.last_alive_at
                line.warning(
                    "skipping participant: proplet is not alive", last_alive_at=last, remedy=_NOT_ALIVE
                )
                skipped.append(
                    Skipped(
                        proplet_id, f"proplet is not alive (last heartbeat: {last or 'never'}): {_NOT_ALIVE}"
                    )
                )
            else:
                proplets.append(proplet)
        return proplets, skipped

    async def _launch(self, experiment: Experiment, proplets: list[Proplet], skipped: list[Skipped]) -> None:
        moment = self._fleet.clock()
        tasks = [_task(experiment, proplet, moment) for proplet in proplets]
        started = {
            "round_id": experiment.round_id,
            "experiment": experiment.to_json(),
            "skipped": [vars(one) for one in skipped],
            "deadline": tables.to_micros(moment + timedelta(seconds=experiment.timeout_s)),
            "created_at": tables.to_micros(moment),
        }
        async with self._database.transaction() as connection:
            await connection.execute(insert(tables.rounds), started)
            await self._store.insert(connection, tasks)
        for one in skipped:
            self._failures.report(experiment.round_id, one.proplet_id, one.reason)
        sent = await asyncio.gather(
            *(self._runs.publish(task, proplet) for task, proplet in zip(tasks, proplets, strict=True))
        )
        await self._store.mark_running([task.id for task, gone in zip(tasks, sent, strict=True) if gone])
        await self._announce(experiment)

    async def _announce(self, experiment: Experiment) -> None:
        try:
            await self._dispatcher.announce(experiment.to_round_start())
        except PropellerError as error:
            log.warning("round is not announced", round_id=experiment.round_id, reason=str(error))

    async def _find(self, round_id: str) -> StartedRound | None:
        statement = select(tables.rounds).where(tables.rounds.c.round_id == round_id)
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).first()
        if row is None:
            return None
        return StartedRound(Experiment.decode(row.experiment), [Skipped(**one) for one in row.skipped])

    async def _over(self, state: State, by: timedelta = timedelta()) -> dict[str, datetime]:
        """Rounds with tasks in a state although the round's deadline has passed, and their deadlines."""
        statement = (
            select(tables.rounds.c.round_id, tables.rounds.c.deadline)
            .join(tables.tasks, tables.tasks.c.round_id == tables.rounds.c.round_id)
            .where(tables.tasks.c.state == int(state))
            .where(tables.rounds.c.deadline < tables.to_micros(self._fleet.clock() - by))
            .distinct()
        )
        async with self._database.transaction() as connection:
            rows = await connection.execute(statement)
            return {row.round_id: tables.from_micros(row.deadline) for row in rows}


def _task(experiment: Experiment, proplet: Proplet, moment: datetime) -> Task:
    env = {"ROUND_ID": experiment.round_id, "MODEL_URI": experiment.model_ref}
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
        state=State.SCHEDULED,
        created_at=moment,
        proplet_id=proplet.id,
        round_id=experiment.round_id,
        start_time=moment,
        updated_at=moment,
    )


def _same(known: StartedRound, experiment: Experiment, given: Collection[str] | None) -> StartedRound:
    compared = set(Experiment.model_fields if given is None else given)
    if not known.experiment.experiment_id or not experiment.experiment_id:
        compared.discard("experiment_id")  # round starts over MQTT have none
    different = [
        name for name in sorted(compared) if getattr(known.experiment, name) != getattr(experiment, name)
    ]
    if different:
        raise ConflictError(
            f"round {experiment.round_id} was already started with another {', '.join(different)}: "
            "use a new round_id"
        )
    log.debug("round was already started", round_id=experiment.round_id)
    return known


def _check_quorum(
    experiment: Experiment, launchable: int, skipped: list[Skipped], *, must_reach_quorum: bool
) -> None:
    # Who sets min_updates says that a round which its deadline closes with so many updates is wanted too.
    needed = experiment.min_updates if "min_updates" in experiment.model_fields_set else experiment.k_of_n
    if launchable >= needed:
        return
    reasons = "; ".join(f"{one.proplet_id}: {one.reason}" for one in skipped[:20])
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
