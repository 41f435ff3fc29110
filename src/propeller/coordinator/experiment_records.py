"""An experiment as the coordinator knows it: the state machine's part, what was asked for, and when things happened."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from propeller.coordinator.rounds import RoundRecord, format_unix_time
from propeller.fl.experiment import Experiment, ExperimentState, round_id, wave_id
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.wire import MalformedMessageError


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment. All times are Unix seconds.

    Attributes:
        experiment: the state machine's part.
        created_at: when it was asked for.
        program: what all rounds run: the reference as it was given, until it is known by digest.
        strategy: a name or a program by digest, and parameters.
        last_seq: the number of its last event.
        started_at: when its first round could be started.
        ended_at: when it was over.
        refusal: why this version of the code cannot carry it out, as its spec is of another one; ``spec`` is then a substitute.
        stored_spec: the spec as it is stored, if there is a substitute.
    """

    experiment: Experiment
    created_at: float
    program: str
    strategy: Mapping[str, Any]
    last_seq: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    refusal: str | None = None
    stored_spec: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """The experiment's id."""
        return self.experiment.id

    @property
    def spec(self) -> ExperimentSpec:
        """What was asked for."""
        return self.experiment.spec

    @property
    def spec_json(self) -> Mapping[str, Any]:
        """What was asked for, as it is told."""
        return self.spec.to_json() if self.stored_spec is None else self.stored_spec

    @property
    def state(self) -> ExperimentState:
        """Where it is."""
        return self.experiment.state

    @property
    def has_aliases(self) -> bool:
        """Whether versions of it have aliases, which may still have to be moved once it is over."""
        return bool(self.experiment.done) or self.experiment.best is not None

    @property
    def open_rounds(self) -> list[str]:
        """The ids of its rounds that are not over: the one that is open, and those of waves."""
        opened, waves = self.experiment.open, self.experiment.waves
        ids = [] if opened is None else [round_id(self.id, opened)]
        return [*ids, *(wave_id(self.id, wave.number) for wave in waves)]

    def is_central(self, record: RoundRecord) -> bool:
        """Whether a round of it is the coordinator's own: an evaluation on a data set of the data store."""
        plan = self.spec.evaluate
        return record.kind == "evaluate" and plan is not None and plan.on == "central"

    def advance(self, after: Experiment, moment: float) -> "ExperimentRecord":
        """This record with the experiment after an event, and the times that follow."""
        started, ended = self.started_at, self.ended_at
        if started is None and after.state is ExperimentState.RUNNING:
            started = moment
        if after.state.is_over and ended is None:
            ended = moment
        return replace(self, experiment=after, started_at=started, ended_at=ended)

    def summary(self) -> dict[str, Any]:
        """The experiment in a list of experiments."""
        experiment, spec, best = self.experiment, self.spec, self.experiment.best
        return {
            "id": self.id,
            "name": spec.name,
            "state": self.state.value,
            "reason": experiment.reason,
            "program": self.program,
            "strategy": dict(self.strategy),
            "rounds": spec.rounds,
            "done": experiment.done,
            "model_version": experiment.version,
            "best": None if best is None else asdict(best),
            "created_at": format_unix_time(self.created_at),
            "started_at": format_unix_time(self.started_at),
            "ended_at": format_unix_time(self.ended_at),
        }

    def columns(self) -> dict[str, Any]:
        """What changes, as it is stored."""
        return {
            "state": self.state.value,
            "settled": self.experiment.is_settled and not self.has_aliases,
            "program": self.program,
            "progress": self.experiment.to_json(),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }

    @classmethod
    def read(cls, row: Mapping[str, Any], last_seq: int) -> "ExperimentRecord":
        """The record in a row of the database."""
        stored, refusal = row["spec"], None
        try:
            spec = ExperimentSpec.decode(stored)
        except MalformedMessageError as error:
            spec, refusal = _substitute(stored), f"this version of the coordinator refuses its spec: {error}"
        try:
            experiment = Experiment.from_json(row["id"], spec, row["progress"])
        except (TypeError, ValueError, KeyError) as error:
            experiment = _without_progress(row, spec)
            refusal = refusal or f"this version of the coordinator cannot read how far it was: {error}"
        return cls(
            experiment,
            row["created_at"],
            row["program"],
            row["strategy"],
            last_seq,
            row["started_at"],
            row["ended_at"],
            refusal,
            None if refusal is None else stored,
        )


def _substitute(stored: Mapping[str, Any]) -> ExperimentSpec:
    """What can be told of an experiment whose spec is refused; no round is started of it."""
    fields = {name: stored[name] for name in ("name", "program", "rounds") if name in stored}
    try:
        return ExperimentSpec.decode(fields)
    except MalformedMessageError:
        return ExperimentSpec(program="unknown", rounds=1)


def _without_progress(row: Mapping[str, Any], spec: ExperimentSpec) -> Experiment:
    """An experiment whose progress is refused: where it is and what it has made, but not what is open."""
    stored = row["progress"] if isinstance(row["progress"], Mapping) else {}
    numbers = {
        name: stored[name]
        for name in ("version", "done")
        if type(stored.get(name)) is int and stored[name] >= 0
    }
    try:
        state = ExperimentState(row["state"])
    except ValueError:
        state = ExperimentState.RUNNING
    return Experiment(row["id"], spec, numbers.get("version", 0), state, done=numbers.get("done", 0))
