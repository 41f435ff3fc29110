"""A strategy of one's own as a program: ``@aggregate``, which merges a round's updates in the aggregator's sandbox."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from propeller.program.context import Context
from propeller.program.registry import registered, result_of
from propeller.tensors import session
from propeller.tensors.array import Array, open_tensor
from propeller.tensors.functions import array
from propeller.tensors.shapes import Spec, TensorError

MODE = "aggregate"
"""``FL_MODE`` of a task that aggregates."""


@dataclass
class Aggregate:
    """What an aggregation returns.

    ``model`` has the base model's names and shapes; it is given the base's dtypes (integers are rounded to the nearest, a
    half to the even one). ``state`` is what the next round's aggregation is given: arrays, which become the server state's
    tensors, and values that JSON can express.
    """

    model: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceUpdate:
    """One update of the round.

    Attributes:
        model: its tensors after local training, opened when they are used.
        base: the model that it started from; not the round's own if the update is stale (asynchronous experiments).
        num_samples: how many samples it was trained on.
        steps: local optimizer steps, if the program on the device counted them.
        metrics: its finite numbers by name.
        slot: the position of its sender among the round's participants.
        staleness: how many versions its base is behind the round's.
    """

    model: Mapping[str, Array]
    base: Mapping[str, Array]
    num_samples: int
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    slot: int = 0
    staleness: int = 0

    @property
    def delta(self) -> Mapping[str, Array]:
        """What training added to its base: ``model - base``, tensor by tensor as they are used."""
        return _Delta(self.model, self.base)


class _Delta(Mapping[str, Array]):
    def __init__(self, model: Mapping[str, Array], base: Mapping[str, Array]) -> None:
        self._model, self._base = model, base

    def __getitem__(self, name: str) -> Array:
        return self._model[name] - self._base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


class _OpenedTensors(Mapping[str, Array]):
    """The tensors of one of the task's files, each opened at its first use."""

    def __init__(self, source: str, owner: str, names: Sequence[str] | None = None) -> None:
        """``owner`` is what errors call it; without ``names`` it has all of the file's tensors."""
        self._source, self._owner, self._names = source, owner, names
        self._specs: dict[str, Spec] | None = None
        self._opened: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._opened:
            specs = self._known()
            if name not in specs:
                raise TensorError(
                    f"{self._owner} has no tensor {name!r}; it has {', '.join(specs) or 'none'}"
                )
            self._opened[name] = open_tensor(self._source, name, specs[name])
        return self._opened[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> dict[str, Spec]:
        if self._specs is None:
            specs = session.current().main.describe(self._source)
            self._specs = specs if self._names is None else {name: specs[name] for name in self._names}
        return self._specs


class _DeviceUpdates(Sequence[DeviceUpdate]):
    """The round's updates. Each access opens one anew, so that one that was dealt with is not kept in memory."""

    def __init__(self, headers: Sequence[Mapping[str, Any]], base: Mapping[str, Array]) -> None:
        self._headers, self._base = headers, base

    def __len__(self) -> int:
        return len(self._headers)

    @overload
    def __getitem__(self, at: int) -> DeviceUpdate: ...
    @overload
    def __getitem__(self, at: slice) -> list[DeviceUpdate]: ...
    def __getitem__(self, at: int | slice) -> DeviceUpdate | list[DeviceUpdate]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        header = self._headers[number]
        of = header["base"]
        base = self._base if of == 0 else _OpenedTensors(f"base-{of}", f"base {of}")
        return DeviceUpdate(
            _OpenedTensors(f"update-{number}", f"update {number}", tuple(self._base)),
            base,
            header["num_samples"],
            header["steps"],
            header["metrics"],
            header["slot"],
            header["staleness"],
        )


def aggregate_task(root: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Do the aggregation that the environment and the files below ``root`` describe (docs/programs.md).

    Returns:
        The document for standard output; the tensors are written beside it.

    Raises:
        TypeError, ValueError, TensorError: what the function gave back is not an aggregate.
    """
    function = registered(MODE)
    task = json.loads((root / "in" / "aggregation.json").read_text())
    base = _OpenedTensors("model", "the base model")
    state: dict[str, Any] = dict(task["state"])
    if (root / "in" / "state.safetensors").exists():
        state |= _OpenedTensors("state", "the state")
    context = Context(
        round_id=environment.get("ROUND_ID", ""),
        model_uri=environment.get("MODEL_URI", ""),
        environment=environment,
    )
    result = function(base, _DeviceUpdates(task["updates"], base), state, task["params"], context)
    with result_of(function):
        values = _save(result, function.__name__)
    return {"round_id": context.round_id, "state": values}


def _save(result: Any, name: str) -> dict[str, Any]:
    """Write the tensors of what a function of this name returned; gives the values of its state that are no tensors."""
    if not isinstance(result, Aggregate):
        raise TypeError(
            f"{name} is marked with @{MODE}: it returns an Aggregate, not {type(result).__name__}"
        )
    tensors = {name: value for name, value in _named(result.state, "state") if isinstance(value, Array)}
    values = {name: value for name, value in _named(result.state, "state") if name not in tensors}
    model = {name: array(value) for name, value in _named(result.model, "model")}
    tape = session.current().main
    tape.save(model, "model")
    if tensors:
        tape.save(tensors, "state")
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the state holds what is neither an array nor JSON: {error}; it has {', '.join(values)}"
        ) from None
    return values


def _named(value: Any, what: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"the aggregate's {what} is a {type(value).__name__}; it is a dict by name")
    return list(value.items())
