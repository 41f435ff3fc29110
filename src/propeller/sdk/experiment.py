"""An experiment as a person writes it in Python: the coordinator's fields, and models and data as they are at hand."""

import functools
import operator
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from propeller.errors import ConflictError, InvalidError
from propeller.fl.selection import natural_order
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.strict import explain_unknown, nearest_names
from propeller.sdk.values import plain

T = TypeVar("T")

_SHOWN_TENSORS = 5

_OWN = {"model", "data", "split"}

_MODEL_SUFFIXES = {".safetensors", ".npz", ".json", ".pt", ".pth", ".py"}
"""What ``read_model`` reads: no alias of a version."""


def _with_named_errors(made: type[T]) -> type[T]:
    """Have a dataclass refuse fields by their names, as a file does; to type checkers and ``help`` it is as it was."""
    generated = made.__init__

    @functools.wraps(generated)
    def check(self: T, /, *given: Any, **named: Any) -> None:
        if given:
            raise InvalidError("fields are given by their names, as Experiment(program=…, rounds=…)")
        known = {one.name: one for one in fields(made) if one.init}  # type: ignore[arg-type]
        unknown = [name for name in named if name not in known]
        if unknown:
            explained = (
                f"{name}: {explain_unknown(name, known, ExperimentSpec.elsewhere)}" for name in unknown
            )
            raise InvalidError("; ".join(explained))
        # One that is missing is found by the check of all of them.
        required = (name for name, one in known.items() if one.default is MISSING)
        generated(self, **{**dict.fromkeys(required), **named})

    made.__init__ = check  # type: ignore[method-assign, assignment]
    return made


@_with_named_errors
@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no one answer to ==
class Experiment:
    """Rounds of one program with one strategy; checked when it is made.

    Each ``run`` of one without an ``id`` of its own begins another experiment. If a run ends in an error, the next one submits it under the
    same id: what was submitted before its answer was lost is not begun twice.

    A field that is left out has the default of docs/experiments.md, where all of them are described.

    Attributes:
        program: the program, as an OCI reference.
        rounds: how many training rounds.
        name: a label; else the last part of the program's repository.
        id: an id of your own: the same experiment with the same id again starts nothing. Default: made anew for each run.
        strategy: by name, as ``"fedadam"``, with parameters as ``{"name": "fedadam", "server_lr": 0.01}``, or a program.
        model: where training starts: arrays by tensor name (NumPy or nested lists; ``read_model`` has them of a file or a script), a version, or an alias. Default: the latest.
        data: data sets to store first (``read_dataset`` has them of files): by the id or name of a device, or a list, for the devices in turn (those of ``selection.names``
            if there are any, else all that are alive, in the order of their names). By name also the data set of a central
            evaluation (``evaluate``'s ``dataset``). Default: what is stored there.
        split: which part of a device's data is held out for evaluation, as ``{"holdout": 0.2, "seed": 0}``.
        selection: who takes part in a round, as ``{"fraction": 0.5, "seed": 1}``.
        k_of_n: how many updates close a round.
        min_updates: how many are enough at its deadline.
        timeout_s: seconds to the deadline.
        retries: tries of one round after the first; those that fail at once are ever longer apart.
        evaluate: as ``{"every": 1, "on": "devices"}``.
        stop: when to end early, as ``{"metric": "accuracy", "target": 0.95}``.
        hyperparams: for the program: constants, or schedules as ``{"lr": {"schedule": "cosine", "start": 0.1, "end": 0.001}}``.
        limits: of each task, as ``{"wall_time_s": 60}``.
        mode: ``"sync"``, or ``{"kind": "async", "buffer": 3}``.
        update: what devices send, as ``{"kind": "delta"}`` or ``{"compression": "int8"}``.

    Raises:
        InvalidError: a field is wrong, or contradicts another one; the text names it and the remedy.
    """

    program: str
    rounds: int
    name: str | None = None
    id: str | None = None
    strategy: str | Mapping[str, Any] | None = None
    model: Mapping[str, Any] | int | str | None = None
    data: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None
    split: Mapping[str, Any] | None = None
    selection: Mapping[str, Any] | None = None
    k_of_n: int | None = None
    min_updates: int | None = None
    timeout_s: float | None = None
    retries: int | None = None
    evaluate: Mapping[str, Any] | None = None
    stop: Mapping[str, Any] | None = None
    hyperparams: Mapping[str, Any] | None = None
    limits: Mapping[str, float] | None = None
    mode: str | Mapping[str, Any] | None = None
    update: Mapping[str, Any] | None = None
    _ids: list[str] = field(default_factory=list, init=False, repr=False)
    """Under which it may have been submitted: those of runs that ended in an error."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.data is not None:
            _check_data(self.data)
        _check_no_file(self.model)
        if isinstance(self.model, Mapping) and not self.model:
            raise InvalidError(
                "model: there are no tensors in it; leave it out to start from the latest version"
            )
        _ = self.spec

    def __repr__(self) -> str:
        """Shows the fields that were given; of tensors and data only how many there are."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        shown = {name: repr(value) for name, value in given.items() if value is not None}
        if isinstance(self.model, Mapping):
            names = [str(name) for name in self.model]
            more = f" … {len(names)} in all" if len(names) > _SHOWN_TENSORS else ""
            shown["model"] = f"<tensors {', '.join(names[:_SHOWN_TENSORS])}{more}>"
        if self.data is not None:
            shown["data"] = f"<of {len(self.data)} devices>"
        return f"Experiment({', '.join(f'{name}={value}' for name, value in shown.items())})"

    @functools.cached_property
    def spec(self) -> ExperimentSpec:
        """What is sent to the coordinator; with an id only if it has one of its own, with the model only if it is a version or an alias."""
        values = {
            one.name: getattr(self, one.name) for one in fields(self) if one.init and one.name not in _OWN
        }
        if isinstance(self.hyperparams, Mapping):
            values["hyperparams"] = _with_round_numbers(self.hyperparams)
        given = {name: plain(value, name) for name, value in values.items() if value is not None}
        if self.split is not None:
            given["data"] = {"split": plain(self.split, "split")}
        if self.model is not None and not isinstance(self.model, Mapping):
            given["model"] = {"version": plain(self.model, "model")}
        return ExperimentSpec.decode(given)

    @contextmanager
    def submission(self) -> Iterator[ExperimentSpec]:
        """``spec`` with an id, for the length of one submission; a further one has it too if this one ends in an error.

        Not if the error is that another experiment has the id.
        """
        if self.spec.id is not None:
            yield self.spec
            return
        try:
            id_ = self._ids.pop()
        except IndexError:
            id_ = new_id(self.spec.name)
        try:
            yield self.spec.model_copy(update={"id": id_})
        except ConflictError:
            raise
        except BaseException:
            self._ids.append(id_)
            raise


def _with_round_numbers(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters whose step schedules have the numbers of rounds as texts, as JSON has them.

    Raises:
        InvalidError: the value of a round is given twice.
    """
    found = dict(hyperparams)
    for name, value in hyperparams.items():
        steps = value.get("values") if isinstance(value, Mapping) and "schedule" in value else None
        if isinstance(steps, Mapping):
            texts = {_round_text(number): step for number, step in steps.items()}
            if len(texts) < len(steps):
                raise InvalidError(f"hyperparams.{name}.values: a round has two values; give one of them")
            found[name] = {**value, "values": texts}
    return found


def _round_text(number: Any) -> Any:
    """A whole number, NumPy's among them, as a text; anything else as it is."""
    try:
        return number if isinstance(number, bool) else str(operator.index(number))
    except TypeError:
        return number


def new_id(name: str) -> str:
    """An id for an experiment of a name, which no other has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def _check_no_file(model: object) -> None:
    named = model["file"] if isinstance(model, Mapping) and set(model) == {"file"} else model
    if isinstance(named, PathLike) or (isinstance(named, str) and Path(named).suffix in _MODEL_SUFFIXES):
        file = fspath(named)
        raise InvalidError(f"model: {file!r} is a file: give read_model({file!r}) of propeller.sdk")


def _check_data(data: Any) -> None:
    """Refuse what are no data sets.

    Raises:
        InvalidError: the text names the one that is none.
    """
    if not isinstance(data, Mapping | Sequence) or isinstance(data, str | bytes):
        raise InvalidError(
            f"data: {type(data).__name__} cannot be sent; give data sets by the names of devices, or a list of them"
        )
    if not data:
        raise InvalidError("data: it is empty; leave it out to use the data that is stored")
    named = data.items() if isinstance(data, Mapping) else enumerate(data)
    for name, one in named:
        if not isinstance(one, Mapping):
            raise InvalidError(
                f'data[{name!r}]: {type(one).__name__} is no data set; give a mapping, as {{"data": [{{"x": [0.5], "y": 1}}]}}'
            )
        if has_no_samples(one):
            raise InvalidError(
                f"data[{name!r}]: it has no samples; give it some, or leave its device out of the experiment"
            )


def has_no_samples(dataset: Mapping[str, Any]) -> bool:
    """Whether nothing is in a data set; one with a schema of its own may have its samples elsewhere."""
    samples = dataset.get("data")
    return "schema" not in dataset and isinstance(samples, Sequence) and not samples


class Fleet:
    """The devices that a manager knows, by their ids and names."""

    def __init__(self, proplets: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> None:
        """``names`` are further ones, as those of a stack on this machine: name → id."""
        proplets = sorted(proplets, key=lambda one: (natural_order(one["name"]), one["name"], one["id"]))
        self._alive = {one["id"]: bool(one["alive"]) for one in proplets}
        self._own_data = {one["id"] for one in proplets if (one.get("metadata") or {}).get("own_data")}
        self._ids: dict[str, list[str]] = {}
        for one in proplets:
            self._ids.setdefault(one["name"], []).append(one["id"])
        self._ids |= {name: [id_] for name, id_ in names.items() if id_ in self._alive}

    def id_of(self, name: str) -> str | None:
        """The id of a device by its id or name; ``None`` if there is none."""
        return name if name in self._alive else next(iter(self._ids.get(name, ())), None)

    def nearest(self, name: str) -> str | None:
        """The name of the device that may be meant by one that there is not."""
        return next(iter(nearest_names(name, self._ids)), None)

    def resolve(self, names: Sequence[str], field: str, also: Iterable[str] = ()) -> list[str]:
        """The ids of devices; ``also`` are names of something else that could have been meant.

        Raises:
            InvalidError: there is none of such a name, and the text says which are like it; or several, and it has their ids.
        """
        unknown = [name for name in names if self.id_of(name) is None]
        if unknown:
            explained = "; ".join(self._explain_unknown(name, also) for name in unknown[:10])
            raise InvalidError(f"{field}: {explained}")
        for name in names:
            if name not in self._alive and len(same := self._ids[name]) > 1:
                raise InvalidError(
                    f"{field}: {len(same)} devices are called {name!r}; name by its id the one that is meant: {', '.join(same[:10])}"
                )
        ids = [self.id_of(name) or name for name in names]
        for id_ in ids:
            if ids.count(id_) > 1:
                both = " and ".join(name for name in names if self.id_of(name) == id_)
                raise InvalidError(f"{field}: {both} are the same device; name it once")
        return ids

    def alive(self) -> list[str]:
        """The ids of the devices that are alive, in the natural order of their names, as the manager's slots are.

        Raises:
            InvalidError: there is none.
        """
        ids = [id_ for id_, alive in self._alive.items() if alive]
        if not ids:
            raise InvalidError("no proplet is alive: see `propeller status`")
        return ids

    def has_own_data(self, id_: str) -> bool:
        """Whether a device reads its data from a file of its own."""
        return id_ in self._own_data

    def require_no_own_data(self, id_: str, field: str) -> None:
        """See that a device would use data that is stored for it.

        Raises:
            InvalidError: it has data of its own.
        """
        if self.has_own_data(id_):
            name = next((name for name, ids in self._ids.items() if id_ in ids), id_)
            raise InvalidError(
                f"{field}: {name} has data of its own (propeller join --data), and uses no other: leave it out"
            )

    def _explain_unknown(self, name: str, also: Iterable[str]) -> str:
        known = [*self._ids, *self._alive, *also]
        near = nearest_names(name, known)
        shown = ", ".join(list(self._ids)[:10]) or "none"
        meant = f"did you mean {near[0]!r}?" if near else f"there are {shown}"
        return f"there is no device {name[:80]!r}; {meant}"


def assign_data(
    experiment: Experiment, names: Sequence[str] | None, fleet: Fleet
) -> dict[str, Mapping[str, Any]]:
    """The data sets that an experiment brings, by the id under which each is stored.

    Args:
        experiment: what was asked for.
        names: the devices that it names, as ids.
        fleet: the devices that there are.

    Raises:
        InvalidError: there are not as many as devices, or one is for a device that does not exist.
    """
    data = experiment.data
    if data is None:
        return {}
    if isinstance(data, Mapping):
        plan = experiment.spec.evaluate
        central = plan.dataset if plan is not None else None
        of_devices = [name for name in data if name != central]
        ids = dict(
            zip(of_devices, fleet.resolve(of_devices, "data", [central] if central else []), strict=True)
        )
        for id_ in ids.values():
            fleet.require_no_own_data(id_, "data")
        return {ids.get(name, name): one for name, one in data.items()}
    chosen = list(names) if names is not None else fleet.alive()
    devices = [id_ for id_ in chosen if not fleet.has_own_data(id_)]
    if len(data) != len(devices):
        own = len(chosen) - len(devices)
        beside = f", beside {own} with data of their own" if own else ""
        raise InvalidError(
            f"data: there are {len(data)} data sets for {len(devices)} devices{beside}; give one for each, or name the "
            "devices in selection.names"
        )
    return dict(zip(devices, data, strict=True))
