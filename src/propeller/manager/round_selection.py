"""Rounds of experiments: the participants are chosen here, where it is known who is alive, and started once on record.

The coordinator publishes the start of a round with a policy in the place of participants, again after each of its own
restarts. The manager chooses and proposes its choice; the coordinator keeps the first one, answers with what it keeps,
and exactly those are launched. So either process may end between any two steps: the start comes again from the broker,
or from the table of waiting rounds, or from the coordinator, and the same participants are launched, once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta

from propeller.errors import PropellerError, UnprocessableError
from propeller.fl.requirements import lacking
from propeller.fl.selection import (
    Candidate,
    Draw,
    NotEnoughError,
    explain_lacking,
    explain_unknown_devices,
    select,
)
from propeller.fl.task_environment import task_environments
from propeller.manager.coordinator_client import CoordinatorClient
from propeller.manager.fleet import Fleet, PropletRecord
from propeller.manager.program_pins import ProgramPins
from propeller.manager.round_repository import RoundRepository
from propeller.manager.round_starter import RoundStarter
from propeller.manager.task_repository import TaskRepository
from propeller.manager.task_runner import TaskRunner
from propeller.mqtt.session import NotConnectedError
from propeller.process.background import BackgroundTasks
from propeller.process.http import ServiceError
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger
from propeller.protocol.requirements import NativePython, Requirements
from propeller.protocol.rounds import ChosenParticipants, RoundStart, RoundStop
from propeller.protocol.selection import SelectionPolicy
from propeller.protocol.wire import MalformedMessageError

log = get_logger("manager")

CHOOSE_AGAIN_S = 0.5
"""Between looks at the fleet while too few proplets are alive, and between calls of a coordinator that is away."""

DEFAULT_WAIT_S = 60.0


class RoundSelector:
    """Chooses the participants of rounds, and launches those that the coordinator has on record."""

    def __init__(
        self,
        rounds: RoundRepository,
        tasks: TaskRepository,
        locks: KeyedLocks,
        fleet: Fleet,
        starter: RoundStarter,
        runner: TaskRunner,
        pins: ProgramPins,
        coordinator: CoordinatorClient | None,
    ) -> None:
        """``locks`` are those of the rounds."""
        self._rounds, self._tasks, self._locks = rounds, tasks, locks
        self._fleet, self._starter, self._runner = fleet, starter, runner
        self._pins, self._coordinator = pins, coordinator
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._background = BackgroundTasks("manager")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go on, for the length of the block, with the rounds that waited for participants when the process ended."""
        for start in await self._rounds.waiting():
            self._wait(start, await self._rounds.add_waiting(start, self._fleet.clock()))
        try:
            yield
        finally:
            await self._background.close()

    async def start(self, start: RoundStart) -> None:
        """Start a round, unless it was started before: at once, or when enough proplets are alive."""
        line = log.bind(round_id=start.round_id)
        if self._coordinator is None:
            line.warning("round is not started: set COORDINATOR_URL to the coordinator's address")
            return
        async with self._locks.holding(start.round_id):
            if start.round_id in self._waiting or await self._rounds.find(start.round_id) is not None:
                line.debug("round was already started")
                return
            if await self._try(self._coordinator, start, is_last=False):
                return
            since = await self._rounds.add_waiting(start, self._fleet.clock())
            self._wait(start, since)

    async def stop(self, message: RoundStop) -> None:
        """Start a round no more, and stop the tasks of the participants whose updates count no more."""
        async with self._locks.holding(message.round_id):
            waiting = self._waiting.pop(message.round_id, None)
            if waiting is not None:
                waiting.cancel()
                await self._rounds.remove_waiting(message.round_id)
            for task in await self._tasks.active_of_round(message.round_id):
                if task.proplet_id in message.participants:
                    try:
                        await self._runner.stop(task.id, f"stopped: {message.reason}", round_is_over=True)
                    except PropellerError as refused:  # it ended by itself, or the broker is away
                        log.info("task is not stopped", task_id=task.id, reason=str(refused))

    def _wait(self, start: RoundStart, since: datetime) -> None:
        if self._coordinator is not None and start.round_id not in self._waiting:
            work = self._wait_and_start(self._coordinator, start, since)
            self._waiting[start.round_id] = self._background.spawn(work)

    async def _wait_and_start(
        self, coordinator: CoordinatorClient, start: RoundStart, since: datetime
    ) -> None:
        until = since + timedelta(seconds=start.timeout_s or DEFAULT_WAIT_S)
        while True:
            await asyncio.sleep(CHOOSE_AGAIN_S)
            try:
                async with self._locks.holding(start.round_id):
                    if await self._try(coordinator, start, is_last=self._fleet.clock() >= until):
                        await self._rounds.remove_waiting(start.round_id)
                        self._waiting.pop(start.round_id, None)
                        return
            except Exception:  # of the database or an answer; a round that waits must not be lost
                log.exception("round cannot be started, trying again", round_id=start.round_id)

    async def _try(self, coordinator: CoordinatorClient, start: RoundStart, *, is_last: bool) -> bool:
        """Choose, propose and launch; whether nothing is left to do. The caller holds the round's lock."""
        line = log.bind(round_id=start.round_id)
        try:
            choice = await self._choose(start, is_last=is_last)
            answer = await coordinator.propose_participants(start.round_id, choice)
        except (ServiceError, NotConnectedError) as error:
            line.warning("round is not started", reason=str(error), again=error.temporary)
            return not error.temporary
        if answer.state == "collecting" and answer.participants:
            program = answer.task_wasm_image
            experiment = start.model_copy(update={"task_wasm_image": program}).with_participants(
                answer.participants
            )
            env = task_environments(start, answer.participants)
            await self._starter.launch_chosen(experiment, answer.model_digest, env, answer.model)
            return True
        if answer.state == "created":
            line.info("round waits for participants", reason=choice.waiting)
            return False
        line.info("round is not started", state=answer.state, reason=choice.failure)
        return True

    async def _choose(self, start: RoundStart, *, is_last: bool) -> ChosenParticipants:
        if start.selection is None:
            raise AssertionError("a round with participants is started by RoundStarter")
        if too_long := self._starter.explain_too_long(start.hyperparams):
            return ChosenParticipants(failure=too_long, final=True)
        if unknown := self._explain_unknown(start, is_last=is_last):
            return unknown
        alive = self._fleet.alive()
        resting = [proplet.name for proplet in alive if _rests(proplet)]
        candidates = [_candidate(proplet) for proplet in alive if not _rests(proplet)]
        draw = Draw(start.number, start.attempt, start.mode)
        left_out = None
        try:
            chosen = select(candidates, start.selection, draw, resting=resting)
            program = await self._pins.pin(start.task_wasm_image)
            unable = {} if program.requirements is None else _lacking(program.requirements, alive)
            if unable:
                able = [one for one in candidates if one.id not in unable]
                named = {one.name: unable[one.id] for one in candidates if one.id in unable}
                chosen = select(able, start.selection, draw, resting=resting, lacking=named)
                left_out = explain_lacking(named)
        except NotEnoughError as error:
            return (
                ChosenParticipants(failure=str(error)) if is_last else ChosenParticipants(waiting=str(error))
            )
        except UnprocessableError as error:
            return ChosenParticipants(failure=str(error))
        if not chosen.ids:
            return ChosenParticipants(
                failure="nobody is free: every device that is alive and may be chosen takes part already"
            )
        known = {one.id: one.name for one in candidates}
        return ChosenParticipants(
            participants=list(chosen.ids),
            surplus=chosen.surplus,
            program=program.reference,
            functions=program.functions,
            requirements=program.requirements,
            names={id_: known[id_] for id_ in chosen.ids},
            left_out=left_out,
        )

    def _explain_unknown(self, start: RoundStart, *, is_last: bool) -> ChosenParticipants | None:
        """Why nobody is chosen where it is not known, or known of nobody, who is meant; ``None``: it is known."""
        policy = start.selection or SelectionPolicy()
        if self._fleet.waits_for_names and (policy.names or policy.tags):
            why = (
                "identity has not said yet what the devices are called and which tags they have: is it there?"
            )
            return ChosenParticipants(failure=why) if is_last else ChosenParticipants(waiting=why)
        if start.number > 1:  # a device that is gone may be one that was deleted, and comes back
            return None
        unknown = explain_unknown_devices(map(_candidate, self._fleet.all()), policy)
        return None if unknown is None else ChosenParticipants(failure=unknown, final=True)


def _rests(proplet: PropletRecord) -> bool:
    """Whether its own policy lets no task begin now."""
    return bool((proplet.metadata or {}).get("resting"))


def _lacking(required: Requirements, proplets: Iterable[PropletRecord]) -> dict[str, str]:
    """What proplets lack of what a native program requires, by their ids."""
    found = {}
    for proplet in proplets:
        told = (proplet.metadata or {}).get("native")
        try:
            device = None if told is None else NativePython.decode(told)
        except MalformedMessageError:
            device = None
        if missing := lacking(required, device):
            found[proplet.id] = missing
    return found


def _candidate(proplet: PropletRecord) -> Candidate:
    keeps_state = (proplet.metadata or {}).get("device_state") is True
    return Candidate(proplet.id, proplet.name, frozenset(proplet.tags), keeps_state)
