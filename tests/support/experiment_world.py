"""A coordinator in memory, for experiments as state machines: what is durable, the rounds that were started, crashes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from propeller.fl.experiment import (
    Admitted,
    CancelRound,
    Effect,
    EvaluateCentrally,
    Event,
    Experiment,
    ExperimentState,
    MergeRequest,
    MergeUpdates,
    Persist,
    ResumeRequested,
    RoundEnded,
    RoundRequest,
    StartRound,
    Transition,
    WaveChanged,
    resume,
    step,
)
from propeller.fl.selection import Candidate, Draw, NotEnoughError, select
from propeller.protocol.experiments import ExperimentSpec

Outcome = tuple[bool, float, tuple[str, ...]]
"""Whether a round works, its metric ``m``, and who failed."""

GOOD: Outcome = (True, 1.0, ())


@dataclass
class WaveRound:
    """The round of a wave, as the coordinator has it."""

    request: RoundRequest
    participants: tuple[str, ...] | None = None
    updates: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    is_over: bool = False
    reason: str | None = None

    @property
    def training(self) -> list[str]:
        """Those that may still send an update."""
        if self.is_over:
            return []
        return [name for name in self.participants or () if name not in (*self.updates, *self.failed)]

    def end(self, reason: str) -> None:
        """End the round with what has come."""
        self.failed += self.training
        self.is_over, self.reason = True, None if self.updates else reason

    def snapshot(self, at: float) -> WaveChanged:
        """What the experiment is told."""
        updates, failed = tuple(self.updates), tuple(self.failed)
        return WaveChanged(
            self.request.round_id, at, self.participants, updates, failed, self.is_over, self.reason
        )


class World:
    """One experiment, its rounds, and a fleet of devices ``d0``, ``d1`` …"""

    def __init__(self, spec: ExperimentSpec, fleet: int = 5) -> None:
        self.experiment = self.durable = Experiment("e", spec, 0)
        self.fleet = [Candidate(f"d{number}", f"d{number}") for number in range(fleet)]
        self.requests: dict[str, RoundRequest | MergeRequest] = {}
        self.ends: dict[str, RoundEnded] = {}
        self.waves: dict[str, WaveRound] = {}
        self.pending: list[Event] = []
        self.versions = 0
        self.now = 0.0

    def feed(self, event: Event, effects_until_crash: int | None = None) -> Transition:
        """Let the experiment hear of an event, and crash after so many of its effects."""
        done = step(self.experiment, event)
        if done.experiment != self.experiment:
            assert done.effects[0] == Persist()
        else:
            assert done.effects == ()
        self.experiment = done.experiment
        self.carry_out(done.effects[:effects_until_crash])
        if effects_until_crash is not None:
            self.crash()
        return done

    def crash(self) -> None:
        """Go on from what is durable."""
        self.experiment, self.pending = self.durable, []
        self.carry_out(resume(self.experiment))

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what a coordinator does."""
        for one in effects:
            match one:
                case Persist():
                    stored = json.loads(json.dumps(self.experiment.to_json(), allow_nan=False))
                    self.durable = Experiment.from_json("e", self.experiment.spec, stored)
                    assert self.durable == self.experiment
                case StartRound(request) if request.is_wave:
                    wave = self.waves.setdefault(request.round_id, WaveRound(request))
                    assert wave.request == request
                    self.pending.append(wave.snapshot(self.now))
                case StartRound(request) | EvaluateCentrally(request) | MergeUpdates(request):
                    assert self.durable.open is not None
                    assert self.requests.setdefault(request.round_id, request) == request
                    self.tell_end(request.round_id)
                case CancelRound(name, reason):
                    self.cancel(name, reason)

    def cancel(self, name: str, reason: str) -> None:
        """End a round that may be over already, or have never been started."""
        if ".w" in name:
            wave = self.waves.get(name)
            if wave is None:
                self.pending.append(WaveChanged(name, self.now, is_over=True, reason=reason))
                return
            if not wave.is_over:
                wave.end(reason)
            self.pending.append(wave.snapshot(self.now))
            return
        assert self.durable.state.is_over
        self.ends.setdefault(name, RoundEnded(name, self.now, reason=reason))
        self.tell_end(name)

    def tell_end(self, name: str) -> None:
        """Tell of a round's end, if it has ended."""
        if name in self.ends:
            self.pending.append(self.ends[name])

    @property
    def open_rounds(self) -> list[str]:
        """Rounds, other than waves, that were started and have not ended."""
        return [name for name in self.requests if name not in self.ends]

    @property
    def open_waves(self) -> list[WaveRound]:
        """Waves that have not ended."""
        return [wave for wave in self.waves.values() if not wave.is_over]

    def end_round(self, name: str, outcome: Outcome) -> RoundEnded:
        """A round's own end, durable before the experiment hears of it."""
        works, metric, names = outcome
        request = self.requests[name]
        version = None
        if works and (isinstance(request, MergeRequest) or request.kind == "train"):
            self.versions += 3  # as the model registry's: the numbers of other experiments lie between
            version = self.versions
        self.ends[name] = RoundEnded(
            name,
            self.now,
            version,
            {"m": metric} if works else {},
            None if works else "lost",
            ("a", "b"),
            names,
        )
        return self.ends[name]

    def choose(self, wave: WaveRound) -> WaveChanged:
        """The manager's choice for a wave."""
        try:
            draw = Draw(wave.request.number)
            wave.participants = select(self.fleet, wave.request.policy, draw).ids
        except NotEnoughError as error:
            wave.end(str(error))
        else:
            if not wave.participants:
                wave.end("nobody")
        return wave.snapshot(self.now)

    def send_update(self, wave: WaveRound, name: str) -> WaveChanged:
        """An update that is accepted."""
        wave.updates.append(name)
        if not wave.training:
            wave.is_over = True
        return wave.snapshot(self.now)

    def fail(self, wave: WaveRound, name: str) -> WaveChanged:
        """A device of a wave that fails."""
        wave.failed.append(name)
        if not wave.training:
            wave.end("all failed")
        return wave.snapshot(self.now)

    def finish(self) -> None:
        """Let everything that is still to come, come."""
        for _ in range(500):
            if self.experiment.is_settled:
                return
            if self.pending:
                self.feed(self.pending.pop(0))
            elif self.experiment.state is ExperimentState.QUEUED:
                self.feed(Admitted(self.now))
            elif self.open_rounds:
                self.feed(self.end_round(self.open_rounds[0], GOOD))
            elif self.open_waves:
                self.go_on_with(self.open_waves[0])
            else:
                assert self.experiment.state is ExperimentState.PAUSED
                self.feed(ResumeRequested(self.now))
        raise AssertionError("it does not end")

    def go_on_with(self, wave: WaveRound) -> None:
        """The next good thing that can happen to a wave."""
        if wave.participants is None:
            self.feed(self.choose(wave))
        else:
            self.feed(self.send_update(wave, wave.training[0]))

    def check_the_end(self) -> None:
        """Nothing is open, lost or counted twice."""
        one = self.experiment
        assert one.is_settled
        assert not one.needs_place
        assert self.open_rounds == []
        assert self.open_waves == []
        versions = [end.version for end in self.ends.values() if end.version is not None]
        assert one.done == len(versions)
        assert one.version == (versions[-1] if versions else 0)
        if one.state is ExperimentState.COMPLETED and one.reason is None:
            assert one.done == one.spec.rounds
        if one.state is ExperimentState.FAILED:
            assert one.reason
