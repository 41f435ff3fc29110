"""An experiment in virtual time: the same state machines, choice and strategies as in the services, and no service.

Devices fit a line to points of their own. How long one takes, and whether it fails, follows from the seed of its slot.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from propeller.fl.experiment import (
    Admitted,
    CancelRound,
    Event,
    Experiment,
    MergeRequest,
    MergeUpdates,
    RoundEnded,
    RoundRequest,
    StartRound,
    WaveChanged,
    step,
)
from propeller.fl.round import (
    Aggregate,
    AggregateStored,
    ChoiceFailed,
    DeadlinePassed,
    ParticipantFailed,
    ParticipantsChosen,
    Round,
    RoundCancelled,
    RoundPlan,
    RoundState,
    UpdateReceived,
    weighted_metrics,
)
from propeller.fl.round import Event as RoundEvent
from propeller.fl.round import step as step_round
from propeller.fl.selection import Candidate, Draw, NotEnoughError, select, slot_seed
from propeller.fl.strategies import Contribution, ServerState, aggregate, read_strategy
from propeller.fl.tensors import Tensors
from propeller.protocol.experiments import ExperimentSpec

TRUTH = np.array([2.0, -1.0])


@dataclass
class SimulatedRound:
    """A round with what its participants sent."""

    request: RoundRequest
    round: Round
    contributions: dict[str, Contribution] = field(default_factory=dict)
    tensors: dict[str, Tensors] = field(default_factory=dict)


class VirtualExperiment:
    """Runs an experiment to its end; ``now`` is then how long it took, in seconds."""

    def __init__(self, spec: ExperimentSpec, devices: list[Candidate], slowest_s: float = 10.0) -> None:
        self.experiment = Experiment("e", spec, 0)
        self.devices, self.slowest_s = devices, slowest_s
        self.positions = {
            one.id: number for number, one in enumerate(sorted(devices, key=lambda one: one.name))
        }
        self.strategy = read_strategy(spec.strategy.to_json())
        self.state: ServerState | None = None
        self.models: list[Tensors] = [{"w": np.zeros(2)}]
        self.rounds: dict[str, SimulatedRound] = {}
        self.stalenesses: list[int] = []
        self.ended: list[RoundEnded] = []
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def run(self) -> "VirtualExperiment":
        """Let it begin, and everything that follows happen."""
        self._feed(Admitted(0.0))
        while self._agenda and not self.experiment.is_settled:
            self.now, _number, act = heapq.heappop(self._agenda)
            act()
        return self

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (moment, next(self._count), act))

    def _feed(self, event: Event) -> None:
        done = step(self.experiment, event)
        self.experiment = done.experiment
        for effect in done.effects:
            match effect:
                case StartRound(request):
                    self._start(request)
                case MergeUpdates(request):
                    self._merge(request)
                case CancelRound(name, reason):
                    self._step(self.rounds[name], RoundCancelled(reason))

    def _start(self, request: RoundRequest) -> None:
        plan = RoundPlan(
            request.round_id,
            (),
            request.base_version,
            request.k_of_n,
            request.min_updates,
            request.kind,
            request.is_wave,
        )
        one = self.rounds[request.round_id] = SimulatedRound(request, Round(plan))
        try:
            chosen = select(self.devices, request.policy, Draw(request.number, request.attempt, request.kind))
        except NotEnoughError as error:
            reason = str(error)
            self._at(self.now + request.timeout_s, lambda: self._step(one, ChoiceFailed(reason)))
            return
        self._at(self.now, lambda: self._begin(one, ParticipantsChosen(chosen.ids, chosen.surplus)))

    def _begin(self, one: SimulatedRound, chosen: ParticipantsChosen) -> None:
        self._step(one, chosen)
        self._at(self.now + one.request.timeout_s, lambda: self._step(one, DeadlinePassed()))
        for slot, name in enumerate(chosen.participants):
            seed = slot_seed(one.request.policy.seed, one.request.number, slot)
            draws = np.random.default_rng([seed, one.request.attempt])
            takes, fails = self.slowest_s * draws.random() ** 4, draws.random() < 0.1
            self._at(self.now + takes, self._task(one, slot, name, draws, fails))

    def _task(
        self, one: SimulatedRound, slot: int, name: str, draws: np.random.Generator, fails: bool
    ) -> Callable[[], None]:
        def end() -> None:
            if one.round.state is not RoundState.COLLECTING:
                return
            if fails:
                self._step(one, ParticipantFailed(name, "lost"))
                return
            self._work(one, slot, name, draws)
            self._step(one, UpdateReceived(name, f"{one.request.round_id}/{name}"))

        return end

    def _work(self, one: SimulatedRound, slot: int, name: str, draws: np.random.Generator) -> None:
        weights: npt.NDArray[np.float64] = self.models[one.request.base_version]["w"].copy()
        number = 20 + 5 * self.positions[name]
        points = np.random.default_rng(self.positions[name]).normal(size=(number, 2))
        values = points @ TRUTH
        for _ in range(5 if one.request.kind == "train" else 0):
            batch = draws.integers(number, size=10)
            slope = points[batch].T @ (points[batch] @ weights - values[batch]) / 10
            weights -= one.request.hyperparams["lr"] * slope
        loss = float(np.mean((points @ weights - values) ** 2))
        one.contributions[name] = Contribution(slot, name, number, 5, {"loss": loss})
        one.tensors[name] = {"w": weights}

    def _step(self, one: SimulatedRound, event: RoundEvent) -> None:
        before = one.round
        done = step_round(before, event)
        one.round = done.round
        for effect in done.effects:
            if isinstance(effect, Aggregate):
                version = self._aggregate([(one, name, 0) for name in effect.proplet_ids])
                one.round = step_round(one.round, AggregateStored(version)).round
        if one.round == before:
            return
        if one.request.is_wave:
            self._feed(self._tell_wave(one))
        elif one.round.state.is_over:
            self._end(one)

    def _tell_wave(self, one: SimulatedRound) -> WaveChanged:
        current = one.round
        participants = current.plan.participants if current.state is not RoundState.CREATED else None
        failed = current.unheard if current.state.is_over else tuple(current.failures)
        name = one.request.round_id
        return WaveChanged(
            name,
            self.now,
            participants,
            tuple(current.accepted),
            failed,
            current.state.is_over,
            current.reason,
        )

    def _end(self, one: SimulatedRound) -> None:
        current = one.round
        metrics = weighted_metrics(one.contributions[name] for name in current.accepted)
        event = RoundEnded(
            one.request.round_id,
            self.now,
            current.model_version,
            metrics,
            current.reason,
            current.plan.participants,
            current.unheard,
        )
        self.ended.append(event)
        self._feed(event)

    def _merge(self, request: MergeRequest) -> None:
        taken = [(self.rounds[one.round_id], one.proplet_id, one.staleness) for one in request.updates]
        self.stalenesses += [staleness for _one, _name, staleness in taken]
        metrics = weighted_metrics(one.contributions[name] for one, name, _staleness in taken)
        event = RoundEnded(request.round_id, self.now, self._aggregate(taken), metrics)
        self.ended.append(event)
        self._at(self.now, lambda: self._feed(event))

    def _aggregate(self, taken: list[tuple[SimulatedRound, str, int]]) -> int:
        newest = self.experiment.version
        bases = sorted(
            {one.request.base_version for one, _name, _staleness in taken} | {newest}, reverse=True
        )
        updates = []
        for slot, (one, name, staleness) in enumerate(taken):
            told = one.contributions[name]
            base = bases.index(one.request.base_version)
            contribution = Contribution(
                slot, name, told.num_samples, told.steps, told.metrics, staleness, base, "weights"
            )
            updates.append((contribution, one.tensors[name]))
        others = [self.models[version] for version in bases[1:]]
        model, self.state = aggregate(
            self.strategy, self.models[newest], self.state, updates, other_bases=others
        )
        self.models.append(model)
        return len(self.models) - 1
