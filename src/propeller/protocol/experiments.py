"""What a person asks for: the experiment, as ``POST /experiments`` of the coordinator and an experiment file have it.

Strict, unlike messages between services: an unknown field is refused by its path, with the nearest name and those that
there are, and fields that contradict each other are refused with the way out. What is accepted has all its defaults
filled in, so that it means the same after an upgrade and can be compared with what was sent again.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from propeller.protocol.bounds import UpdateBounds
from propeller.protocol.compression import Compression, NamedCompression
from propeller.protocol.goals import Goal, explain_missing_goal, goal_of
from propeller.protocol.ids import Id
from propeller.protocol.rounds import MAX_ROUNDS
from propeller.protocol.schedules import Hyperparameter, Number
from propeller.protocol.selection import Fraction, Seed
from propeller.protocol.strict import NestedProblemsError, StrictMessage, require_json
from propeller.protocol.task import TaskLimits
from propeller.protocol.wire import MAX_INTEGER, require_printable, require_unique

MAX_REFERENCE = 400
"""Characters of a reference to a program; with registry and digest it has at most 512, which is what messages and tables take."""

MAX_RETRIES = 100
"""The most tries of one round after the first."""

MAX_ID_CHARACTERS = 100
"""Of an experiment's id: the ids of its rounds, which are this and a suffix, are ids too."""

MAX_NAMED = 10_000
"""The most devices of a selection."""

ASYNC_STRATEGY = "fedbuff"
"""The strategy of an asynchronous experiment that names none; of others it is ``fedavg``."""

DEFAULT_BUFFER = 3
DEFAULT_MAX_STALENESS = 10

_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LABEL_RULE = "1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
_ROUND_SUFFIX = re.compile(r"\.[ew]?[0-9]+")
_ALIAS = re.compile(r"(?![0-9]+$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127})?")

_ELSEWHERE = {
    "image": "program",
    "participants": "selection.names",
    "hyperparameters": "hyperparams",
    "timeout": "timeout_s",
    "seed": "selection.seed",
    "fraction": "selection.fraction",
    "count": "selection.count",
    "names": "selection.names",
    "tags": "selection.tags",
    "metric": "stop.metric",
    "patience": "stop.patience",
    "target": "stop.target",
    "split": "data.split",
    "compression": "update.compression",
    "max_norm": "update.max_norm",
    "max_samples": "update.max_samples",
    "max_share": "update.max_share",
    "max_steps": "update.max_steps",
    "metric_ranges": "update.metric_ranges",
}
"""Names that people try at the top, and where the field is."""


def _check_label(value: str) -> str:
    if _LABEL.fullmatch(value) is None:
        raise ValueError(f"{value[:80]!r} is not a valid name: use {_LABEL_RULE}")
    return value


def _check_strategy_name(value: str) -> str:
    if "/" in value or ":" in value:
        raise ValueError(
            f'{value!r} is not a name of a strategy, as "fedavg"; for a program that aggregates give '
            f"{{program = {json.dumps(value)}}}"
        )
    return value


def _check_experiment_id(value: str) -> str:
    if len(value) > MAX_ID_CHARACTERS:
        raise ValueError(f"must have at most {MAX_ID_CHARACTERS} characters, as ids of rounds are made of it")
    ending = value[value.rfind(".") :] if "." in value else ""
    if _ROUND_SUFFIX.fullmatch(ending) is not None:
        raise ValueError(f"must not end in {ending!r}, as ids of rounds do; use another one")
    return value


def _check_version(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a number, or an alias")  # noqa: TRY004 - pydantic explains ValueErrors
    if isinstance(value, str) and _ALIAS.fullmatch(value) is None:
        raise ValueError("must be a number, or an alias as 'production' or 'my-experiment/best'")
    if isinstance(value, int) and not 0 <= value <= MAX_INTEGER:
        raise ValueError(f"must be from 0 to {MAX_INTEGER}")
    return value


def _check_reference(value: str) -> str:
    if len(value) > MAX_REFERENCE:
        raise ValueError(
            f"has {len(value)} characters and may have {MAX_REFERENCE}, so that there is room for its registry and digest"
        )
    return value


_Label = Annotated[str, AfterValidator(_check_label)]
_Text = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(require_printable)]
_Reference = Annotated[
    str, Field(min_length=1), AfterValidator(_check_reference), AfterValidator(require_printable)
]
_Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]
_Names = Annotated[list[_Text], Field(min_length=1, max_length=MAX_NAMED), AfterValidator(require_unique)]
_Tags = Annotated[list[_Text], Field(max_length=100), AfterValidator(require_unique)]


class Selection(StrictMessage):
    """Who takes part in a round.

    Attributes:
        fraction: this part of the devices that are there, rounded up.
        count: this many of them. Without both: all of them.
        over_select: asks for this part more than needed (0.25: a quarter more), as some will be slow or fail.
        tags: only devices that have all of these.
        names: only devices of these names or ids.
        min_available: how many must be there before a choice is made. Default: ``count``, all ``names``, or 1.
        seed: of the choice, and of everything else that is random in the experiment.
        cooldown_rounds: who took part rests for this many rounds while enough others are there.
    """

    fraction: Fraction | None = None
    count: Annotated[int, Field(ge=1, le=MAX_NAMED)] | None = None
    over_select: Annotated[float, Field(ge=0, le=10)] = 0.0
    tags: _Tags = Field(default_factory=list)
    names: _Names | None = None
    min_available: Annotated[int, Field(ge=1, le=MAX_NAMED)] | None = None
    seed: Seed = 0
    cooldown_rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.fraction is not None and self.count is not None:
            raise ValueError("fraction and count contradict each other: give one of them")
        if self.names is not None:
            self._check_names(self.names)
        elif self.over_select and self.fraction is None and self.count is None:
            raise ValueError(
                "over_select needs count or fraction: without them all devices are asked already"
            )
        if self.cooldown_rounds and self.fraction is None and self.count is None:
            raise ValueError(
                "cooldown_rounds needs count or fraction: without them all take part in each round"
            )
        if self.count is not None and self.min_available is not None and self.min_available < self.count:
            raise ValueError(
                f"min_available ({self.min_available}) is less than count ({self.count}): raise it, or leave it out"
            )
        return self

    def _check_names(self, names: list[str]) -> None:
        for field in ("over_select", "tags"):
            if getattr(self, field):
                raise ValueError(
                    f"names and {field} contradict each other: names says who there is to choose from"
                )
        for field in ("count", "min_available"):
            value = getattr(self, field)
            if value is not None and value > len(names):
                raise ValueError(
                    f"{field} ({value}) is more than the {len(names)} names: lower it, or name more"
                )

    @property
    def most(self) -> int | None:
        """How many updates a round can ask for, the surplus of ``over_select`` aside; ``None``: not known before."""
        return self.count if self.count is not None or self.names is None else len(self.names)


class EvaluationPlan(StrictMessage):
    """When and where the model is evaluated.

    Attributes:
        every: after each so many rounds, and after the last one.
        on: ``devices``: on held-out data of the devices; ``central``: by the coordinator, on a data set.
        fraction: of the devices that could take part in a round, for ``devices``.
        dataset: its id in the data store, for ``central``.
    """

    every: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1
    on: Literal["devices", "central"] = "devices"
    fraction: Fraction = 1.0
    dataset: Id | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.on == "central" and self.dataset is None:
            raise ValueError(
                'dataset is missing: on = "central" needs the id of a data set in the data store'
            )
        if self.on == "devices" and self.dataset is not None:
            raise ValueError(
                'dataset is only for on = "central": devices evaluate on their own data; leave one out'
            )
        if self.on == "central" and self.fraction != 1:
            raise ValueError('fraction is only for on = "devices": leave one of them out')
        return self


class StopRule(StrictMessage):
    """When an experiment ends before its last round, and which of its versions is the best.

    Attributes:
        metric: what is looked at: of evaluations if there are any, else of training.
        target: ends once the metric is as good as this.
        patience: ends after this many looks in a row without a better one.
        goal: what is better. Default: what the metric's name says (``goals``); one that says nothing needs it.
        max_time_s: ends after this many seconds.
    """

    metric: _Text | None = None
    target: Number | None = None
    patience: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] | None = None
    goal: Goal | None = None
    max_time_s: _Seconds | None = None

    @classmethod
    def complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Say what is better, by the metric's name."""
        metric = fields.get("metric")
        goal = goal_of(metric) if isinstance(metric, str) else None
        return fields if goal is None else {"goal": goal, **fields}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metric is None:
            for field in ("target", "patience", "goal"):
                if getattr(self, field) is not None:
                    raise ValueError(f'{field} needs metric: name what is looked at, as metric = "accuracy"')
        elif self.goal is None:
            raise ValueError(explain_missing_goal(self.metric))
        return self


class ModelChoice(StrictMessage):
    """The version to start from, by number or alias."""

    version: Annotated[int | str, BeforeValidator(_check_version)]


class Mode(StrictMessage):
    """How updates are gathered: in rounds, or by FedBuff (Nguyen et al. 2022).

    Attributes:
        kind: ``sync`` or ``async``.
        buffer: async: this many updates make a version. Default: 3.
        concurrency: async: this many devices train at once. Default: twice ``buffer``.
        max_staleness: async: an update is refused if its base is more than this many versions old. Default: 10.
    """

    text_field = "kind"

    kind: Literal["sync", "async"] = "sync"
    buffer: Annotated[int, Field(ge=1, le=MAX_NAMED)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=MAX_NAMED)] | None = None
    max_staleness: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] | None = None

    @classmethod
    def complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Fill in what an asynchronous mode leaves out."""
        if fields.get("kind") != "async":
            return fields
        buffer = fields.get("buffer", DEFAULT_BUFFER)
        concurrency = min(2 * buffer, MAX_NAMED) if isinstance(buffer, int) else None
        staleness = DEFAULT_MAX_STALENESS
        return {"buffer": buffer, "concurrency": concurrency, "max_staleness": staleness, **fields}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "sync":
            for field in ("buffer", "concurrency", "max_staleness"):
                if getattr(self, field) is not None:
                    raise ValueError(f'{field} is only for kind = "async": leave one of them out')
        return self


class DataSplit(StrictMessage):
    """Which part of a device's data is held out from training for evaluation, and the seed of the choice."""

    holdout: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed = 0


class DataPlan(StrictMessage):
    """How devices use their data."""

    split: DataSplit | None = None


class UpdateForm(UpdateBounds):
    """What devices send: the new weights or their difference to the base model, how it is compressed, and how large it may be."""

    kind: Literal["weights", "delta"] = "weights"
    compression: NamedCompression = Field(default_factory=Compression)

    def for_devices(self) -> dict[str, Any] | None:
        """What devices are told of it; ``None``: they send what their program makes, as it is."""
        asked: dict[str, Any] = {"kind": self.kind} if self.kind == "delta" else {}
        if not self.compression.is_none:
            asked["compression"] = self.compression.to_json()
        return asked or None


class StrategySpec(StrictMessage):
    """A strategy by name, or a program that aggregates, with its parameters as further fields.

    Names and parameters are checked by whoever knows the strategies (``fl.strategies``), not here: only so can the error list them.
    """

    model_config = ConfigDict(extra="allow")
    text_field = "name"

    name: Annotated[_Text, AfterValidator(_check_strategy_name)] | None = None
    program: _Reference | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.name is None) == (self.program is None):
            raise ValueError('give either name, as "fedavg", or program, as {"program": "registry/mine:v1"}')
        for name, value in self.params.items():
            try:
                require_json(value)
            except ValueError as error:
                raise NestedProblemsError([((name[:80],), str(error))]) from None
        return self

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that were given."""
        return dict(self.model_extra or {})


class ExperimentSpec(StrictMessage):
    """An experiment as it was asked for (docs/experiments.md has the fields)."""

    elsewhere = _ELSEWHERE

    id: Annotated[Id, AfterValidator(_check_experiment_id)] | None = None
    name: _Label = ""
    program: _Reference
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
    strategy: StrategySpec = Field(default_factory=lambda: StrategySpec(name="fedavg"))
    selection: Selection = Field(default_factory=Selection)
    k_of_n: Annotated[int, Field(ge=1, le=MAX_NAMED)] | None = None
    min_updates: Annotated[int, Field(ge=1, le=MAX_NAMED)] = 1
    timeout_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 60.0
    retries: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 2
    evaluate: EvaluationPlan | None = None
    stop: StopRule = Field(default_factory=StopRule)
    model: ModelChoice | None = None
    hyperparams: dict[str, Hyperparameter] = Field(default_factory=dict)
    limits: TaskLimits = None
    mode: Mode = Field(default_factory=Mode)
    data: DataPlan = Field(default_factory=DataPlan)
    update: UpdateForm = Field(default_factory=UpdateForm)

    @classmethod
    def complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Name it after its program; what gathers updates asynchronously weighs them by their age."""
        program, mode = fields.get("program"), fields.get("mode")
        kind = mode.get("kind") if isinstance(mode, Mapping) else getattr(mode, "kind", mode)
        named = {"name": default_name(program)} if isinstance(program, str) else {}
        chosen = {"strategy": ASYNC_STRATEGY} if kind == "async" else {}
        return {**named, **chosen, **fields}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode.kind == "async":
            self._check_async()
        self._check_quorum()
        if self.evaluate is not None and self.evaluate.every > self.rounds:
            raise ValueError(
                f"evaluate.every ({self.evaluate.every}) is more than rounds ({self.rounds}): lower it, or leave it out"
            )
        return self

    def _check_quorum(self) -> None:
        most = self.selection.most
        where = "selection.names" if self.selection.count is None else "selection.count"
        if self.k_of_n is not None and most is not None and self.k_of_n > most:
            raise ValueError(
                f"k_of_n ({self.k_of_n}) is more than {where} ({most}): lower it, or choose more devices"
            )
        if self.k_of_n is not None and self.min_updates > self.k_of_n:
            raise ValueError(
                f"min_updates ({self.min_updates}) is more than k_of_n ({self.k_of_n}): lower it"
            )
        if most is not None and self.min_updates > most:
            raise ValueError(f"min_updates ({self.min_updates}) is more than {where} ({most}): lower it")

    def _check_async(self) -> None:
        if self.k_of_n is not None or self.min_updates != 1:
            field = "min_updates" if self.k_of_n is None else "k_of_n"
            raise ValueError(
                f'{field} and mode.kind = "async" contradict each other: mode.buffer says how many updates make a '
                "version; leave one of them out"
            )
        for field in ("count", "fraction", "over_select"):
            if getattr(self.selection, field):
                raise ValueError(
                    f'selection.{field} and mode.kind = "async" contradict each other: mode.concurrency says how many '
                    "devices train at once; leave one of them out"
                )
        names, concurrency = self.selection.names, self.mode.concurrency
        if names is not None and concurrency is not None and concurrency > len(names):
            raise ValueError(
                f"mode.concurrency ({concurrency}) is more than the {len(names)} selection.names: lower it, or name more"
            )


def default_name(program: str) -> str:
    """The last part of the program's repository or file as a name: ``logreg`` for ``localhost:5000/fl/logreg:v1`` and ``logreg.py``."""
    repository = program.partition("@")[0].rpartition("/")[2].partition(":")[0]
    repository = repository.removesuffix(".py").removesuffix(".wasm")
    return re.sub(r"[^a-z0-9._-]", "-", repository.lower()).lstrip("._-")[:64] or "experiment"


def canonical_json(spec: ExperimentSpec) -> str:
    """The experiment as one text: two are asked for alike exactly if these are equal."""
    return json.dumps(spec.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
