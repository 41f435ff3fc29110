"""An experiment in virtual time: the coordinator's records and state machines, the manager's choice and the aggregator's strategies, and no service.

Nothing waits: what a client sends is computed as soon as it can matter, and counts at the moment at which its device would have sent it.
So the result follows from the seeds alone, not from how fast this machine is, or how many workers it has.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.experiment_rounds import make_merge_start, make_round
from propeller.coordinator.round_events import round_ended, wave_changed
from propeller.coordinator.rounds import AcceptedUpdate, NewVersion, RoundRecord
from propeller.coordinator.update_checks import update_specs
from propeller.errors import InvalidError, PropellerError
from propeller.fl.experiment import (
    Admitted,
    CancelRound,
    EvaluateCentrally,
    Event,
    Experiment,
    MergeRequest,
    MergeUpdates,
    RoundRequest,
    StartRound,
    TimePassed,
    check_names,
    step,
    wave_id,
)
from propeller.fl.round import (
    Aggregate,
    AggregateStored,
    AggregationFailed,
    ChoiceFailed,
    DeadlinePassed,
    ParticipantFailed,
    ParticipantsChosen,
    ParticipantsReported,
    Round,
    RoundCancelled,
    RoundPlan,
    RoundState,
    UpdateReceived,
    UpdatesLeftOut,
)
from propeller.fl.round import Event as RoundEvent
from propeller.fl.round import step as step_round
from propeller.fl.selection import Candidate, Draw, NotEnoughError, select
from propeller.fl.strategies import Contribution, ServerState
from propeller.fl.task_environment import task_environments
from propeller.fl.tensors import Tensors, specs_of
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.rounds import RoundStart
from propeller.protocol.task import encode_json
from propeller.simulation.aggregation import Bases, RoundAggregator, StrategyAggregator
from propeller.simulation.client_tasks import CENTRAL, ClientTasks, OpenRound
from propeller.simulation.devices import VirtualDevices
from propeller.simulation.messages import RoundTask
from propeller.simulation.model_files import ModelFiles
from propeller.simulation.update_spool import UpdateSpool
from propeller.simulation.workers import ClientRunner

_CHOOSE_AGAIN_S = 0.5
"""Between looks at the fleet while too few devices are there, as a manager has it."""


class SimulatedExperiment:
    """Runs an experiment to its end.

    Attributes:
        record: the experiment, as a coordinator has it.
        rounds: every round in the order in which it was started, as a coordinator has it.
        now: the virtual time in seconds.
    """

    def __init__(
        self,
        experiment_id: str,
        spec: ExperimentSpec,
        model: Tensors,
        clients: Sequence[Candidate],
        devices: VirtualDevices,
        samples: Callable[[int], int],
        runner: ClientRunner,
        models: ModelFiles,
        *,
        program: str,
        first_version: int = 1,
        has_central: bool = False,
        aggregator: RoundAggregator | None = None,
        observe: Callable[["SimulatedExperiment", RoundRecord], None] | None = None,
    ) -> None:
        """Begin nothing yet.

        Args:
            experiment_id: its id.
            spec: what is asked for.
            model: where training starts.
            clients: the virtual fleet; the position of each is the number of its data.
            devices: how long each takes.
            samples: how many samples a client has, by its number.
            runner: computes what clients send.
            models: takes the versions; it has none.
            program: its reference, for the record.
            first_version: the number of the model to start from; programs may draw by it.
            has_central: whether there is data for a central evaluation.
            aggregator: makes versions of updates; default: by the strategy that ``spec`` names.
            observe: called whenever a round has changed its state.
        """
        if spec.evaluate is not None and spec.evaluate.on == "central" and not has_central:
            raise InvalidError(
                "evaluate.dataset: there is no such data: give it beside the clients' data, or evaluate on devices"
            )
        check_names(spec, model)
        experiment = Experiment(experiment_id, spec, first_version)
        self._aggregator = aggregator or StrategyAggregator(spec.strategy.to_json())
        self.record = ExperimentRecord(experiment, 0.0, program, self._aggregator.strategy)
        self.now = 0.0
        self._names = {one.id: one.name for one in clients}
        self._candidates = list(clients)
        self._availability = devices.availability
        self._tasks = ClientTasks(clients, devices, samples, runner, self.model)
        self._models = models
        self._observe = observe
        self._specs = specs_of(model)
        self._server_states: dict[int, ServerState] = {}
        self._rounds: dict[str, OpenRound] = {}
        self._waves: dict[str, OpenRound] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._round_numbers = itertools.count()
        models.add(first_version, model)

    @property
    def rounds(self) -> list[RoundRecord]:
        """Every round in the order in which it was started."""
        return [one.record for one in self._rounds.values()]

    @property
    def done(self) -> int:
        """How many clients' tasks were computed."""
        return self._tasks.done

    @property
    def kept_updates(self) -> int:
        """How many updates wait to be aggregated."""
        return sum(len(one.updates) for one in self._rounds.values())

    def model(self, version: int) -> Tensors:
        """A version of the model.

        Raises:
            KeyError: there is none.
        """
        return self._models[version]

    def run(self) -> None:
        """Let it begin, and everything that follows happen."""
        try:
            self._feed(Admitted(0.0))
            while self._agenda and not self.record.experiment.is_settled:
                self.now, _number, act = heapq.heappop(self._agenda)
                act()
        finally:
            for one in self._rounds.values():
                one.updates.clear()

    # What the experiment decides -------------------------------------------------------------------------------

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (moment, self._count, act))
        self._count += 1

    def _feed(self, event: Event) -> None:
        before = self.record.experiment
        transition = step(before, event)
        self.record = self.record.advance(transition.experiment, self.now)
        if transition.experiment.deadline not in {None, before.deadline}:
            deadline = transition.experiment.deadline or 0.0
            self._at(deadline, lambda: self._feed(TimePassed(deadline)))
        for effect in transition.effects:
            match effect:
                case StartRound(request) | EvaluateCentrally(request):
                    self._start(request)
                case MergeUpdates(request):
                    self._merge(request)
                case CancelRound(name, reason):
                    self._step(self._rounds[name], RoundCancelled(reason))
                case _:  # what tells others
                    pass

    def _start(self, request: RoundRequest) -> None:
        state = self._server_states.get(request.base_version)
        record = make_round(
            self.record, request, self._specs, {} if state is None else state.values, self.now
        )
        one = self._rounds[request.round_id] = OpenRound(record, UpdateSpool(self._models.folder))
        if request.is_wave:
            self._waves[request.round_id] = one
        if self.record.is_central(record):
            self._at(self.now, lambda: self._begin(one, ParticipantsChosen((CENTRAL,), 0)))
            return
        self._choose(one, request, self.now + request.timeout_s)

    def _choose(self, one: OpenRound, request: RoundRequest, until: float) -> None:
        """Choose participants of those that are there, as a manager does: again whenever somebody has come, until it is too late."""
        if one.record.state.is_over:
            return
        count = len(self._candidates)
        there, later = self._candidates, math.inf
        if self._availability is not None:
            present = self._availability.at(self.now, count)
            there = list(itertools.compress(self._candidates, present))
            later = max(self._availability.next_begin(self.now, count), self.now + _CHOOSE_AGAIN_S)
        draw = Draw(request.number, request.attempt, request.kind)
        try:
            chosen = select(there, request.policy, draw)
        except NotEnoughError as error:
            if later <= until:
                self._at(later, lambda: self._choose(one, request, until))
                return
            reason = str(error)
            self._at(until, lambda: self._step(one, ChoiceFailed(reason)))
            return
        except PropellerError as error:  # what waiting does not heal
            reason = str(error)
            self._at(self.now, lambda: self._step(one, ChoiceFailed(reason)))
            return
        self._at(self.now, lambda: self._begin(one, ParticipantsChosen(chosen.ids, chosen.surplus)))

    def _begin(self, one: OpenRound, chosen: ParticipantsChosen) -> None:
        self._step(one, chosen)
        record = one.record
        if record.state is not RoundState.COLLECTING:
            return
        one.task = self._round_task(record)
        self._at(record.deadline, lambda: self._step(one, DeadlinePassed()))
        one.model_bytes = sum(array.nbytes for array in self._models[record.round.plan.base_version].values())
        self._tasks.begin(one, self.now)
        one.number = self._count
        self._count += len(one.coming)
        self._await(one)

    def _round_task(self, record: RoundRecord) -> RoundTask:
        start = record.request
        if not isinstance(start, RoundStart):
            raise TypeError("rounds of experiments alone are simulated")
        participants = record.round.plan.participants
        env = {"ROUND_ID": start.round_id, "MODEL_URI": start.model_uri}
        env |= task_environments(start, participants[:1])[participants[0]]
        del env["FL_SEED"]
        if start.hyperparams is not None:
            env["HYPERPARAMS"] = encode_json(start.hyperparams).decode()
        version = record.round.plan.base_version
        strategy = (
            self._models.strategy_file(version, self._server_states.get(version))
            if start.strategy and start.strategy.get("tensors")
            else None
        )
        specs = update_specs(record.strategy, record.specs)
        return RoundTask(
            number=next(self._round_numbers),
            env=env,
            evaluates=record.kind == "evaluate",
            model=str(self._models.model_file(version)),
            strategy=None if strategy is None else str(strategy),
            split=start.split,
            update={name: (spec.dtype, list(spec.shape)) for name, spec in specs.items()},
        )

    # What devices send -----------------------------------------------------------------------------------------

    def _await(self, one: OpenRound) -> None:
        """Note when something is heard of the next of a round's participants."""
        if one.coming:
            heapq.heappush(self._agenda, (one.coming[-1].moment, one.number, lambda: self._hear(one)))

    def _hear(self, one: OpenRound) -> None:
        """Take what participants have to say until anything else happens: together, as a round may have many of them.

        In a wave each by itself, as its experiment hears of each.
        """
        plan = one.record.round.plan
        if one.record.state is not RoundState.COLLECTING:
            return
        missing = len(plan.participants) if plan.k_of_n is None else plan.k_of_n
        missing -= len(one.record.round.accepted)
        reports: list[UpdateReceived | ParticipantFailed] = []
        accepted: list[AcceptedUpdate] = []
        while one.coming and len(accepted) < missing and not (plan.is_wave and reports):
            coming = one.coming[-1]
            if self._agenda and (coming.moment, one.number) > self._agenda[0][:2]:
                break
            self.now = coming.moment
            found = self._tasks.report(one, coming, missing - len(accepted))
            if isinstance(found, AcceptedUpdate):
                accepted.append(found)
                reports.append(UpdateReceived(coming.name, found.digest))
            else:
                reports.append(found)
            one.coming.pop()
            one.number += 1
        self._step(one, ParticipantsReported(tuple(reports)), accepted)
        if one.record.state is RoundState.COLLECTING:
            self._await(one)

    # What becomes of rounds ------------------------------------------------------------------------------------

    def _step(self, one: OpenRound, event: RoundEvent, accepted: Sequence[AcceptedUpdate] = ()) -> None:
        before = one.record
        transition = step_round(before.round, event)
        if transition.round == before.round:
            return
        names = None
        if isinstance(event, ParticipantsChosen):
            names = {name: self._names[name] for name in event.participants if name in self._names}
        one.record = before.advance(transition.round, self.now, accepted, names=names)
        for effect in transition.effects:
            if isinstance(effect, Aggregate):
                self._aggregate(one, effect.proplet_ids)
        self._tell(one, before)

    def _tell(self, one: OpenRound, before: RoundRecord) -> None:
        record = one.record
        if record.state is not before.state and self._observe is not None:
            self._observe(self, record)
        ends = record.state.is_over and not before.state.is_over
        if ends:
            one.let_go()
        if record.round.plan.is_wave:
            self._feed(wave_changed(record, self.now))
        elif ends:
            one.updates.clear()
            self._feed(round_ended(self.record, record, self.now))
        if ends:
            self._drop_updates()

    def _drop_updates(self) -> None:
        """Drop what waves have sent and no merge can want any more: it is in a version, or too old."""
        experiment = self.record.experiment
        wanted: dict[str, set[str]] = {}
        for each in (*experiment.buffer, *experiment.merging):
            wanted.setdefault(wave_id(experiment.id, each.wave), set()).add(each.proplet_id)
        for name, one in list(self._waves.items()):
            one.updates.keep(wanted.get(name, ()))
            if one.record.state.is_over and name not in wanted:
                one.updates.clear()
                del self._waves[name]

    def _aggregate(self, one: OpenRound, names: Sequence[str]) -> None:
        record = one.record
        chosen = set(names)
        received = [
            _Received(name, slot, one.updates)
            for slot, name in enumerate(record.round.plan.participants)
            if name in chosen
        ]
        request = record.request
        first = isinstance(request, RoundStart) and request.number == 1
        self._finish(one, received, record.round.plan.base_version, [], with_state=not first)

    def _merge(self, request: MergeRequest) -> None:
        """A round of updates that are there already."""
        updates = {
            each.proplet_id: self._rounds[each.round_id].record.updates[each.proplet_id]
            for each in request.updates
        }
        plan = RoundPlan(request.round_id, tuple(updates), request.base_version, len(updates))
        accepted = {name: update.digest for name, update in updates.items()}
        record = RoundRecord(
            Round(plan, RoundState.AGGREGATING, accepted),
            make_merge_start(self.record, request, {name: self._names[name] for name in updates}),
            self._specs,
            self.now,
            self.now,
            updates,
            self.now,
            announced=True,
            strategy=dict(self.record.strategy),
        )
        one = self._rounds[request.round_id] = OpenRound(record, UpdateSpool(self._models.folder))
        older = sorted({each.base_version for each in request.updates} - {request.base_version})
        bases = [request.base_version, *older]
        received = [
            _Received(
                each.proplet_id,
                slot,
                self._rounds[each.round_id].updates,
                each.staleness,
                bases.index(each.base_version),
            )
            for slot, each in enumerate(request.updates)
        ]

        def merge() -> None:
            if one.record.state.is_over:
                return  # cancelled
            self._finish(one, received, request.base_version, older, with_state=request.number > 1)
            self._tell(one, record)

        self._at(self.now, merge)

    def _finish(
        self,
        one: OpenRound,
        received: Sequence["_Received"],
        base_version: int,
        older: Sequence[int],
        *,
        with_state: bool,
    ) -> None:
        """Make a version of updates, without those that are to blame if there is none, or say why there is none."""
        state = self._server_states.get(base_version) if with_state else None
        bases = Bases(self._models[base_version], state, [self._models[version] for version in older])
        while one.record.state is RoundState.AGGREGATING:
            left = [each for each in received if each.name in one.record.updates]
            counted = one.record.counted_samples()
            updates = [
                (each.contribution(one.record.updates[each.name], counted), each.kept.tensors(each.name))
                for each in left
            ]
            new = None
            try:
                made = self._aggregator.aggregate(one.record.round_id, bases, updates)
            except PropellerError as error:
                reasons = self._aggregator.find_outliers(bases, updates, str(error))
                event: RoundEvent = AggregationFailed(f"aggregation: {error}")
                if reasons:
                    event = UpdatesLeftOut(reasons)
            else:
                version = self._models.newest + 1
                self._models.add(version, made.model)
                self._server_states[version] = made.state
                # Versions are one after the other, and devices that begin at this moment may want the one before: no older one is asked for.
                self._server_states.pop(version - 2, None)
                event, new = AggregateStored(version), NewVersion(version, {}, made.report)
            done = step_round(one.record.round, event)
            one.record = one.record.advance(done.round, self.now, new=new)


@dataclass(frozen=True)
class _Received:
    """An update that is aggregated: whose, from which slot, and where its tensors are."""

    name: str
    slot: int
    kept: UpdateSpool
    staleness: int = 0
    base: int = 0

    def contribution(self, update: AcceptedUpdate, counted: Mapping[str, int]) -> Contribution:
        return Contribution(
            self.slot,
            update.proplet_id,
            counted[self.name],
            update.steps,
            update.metrics,
            self.staleness,
            self.base,
            update.kind,
        )
