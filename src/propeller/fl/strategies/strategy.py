"""What a strategy is: how the updates of a round and the server state become the next model and server state.

A strategy works in three steps, so that no model need be in memory as a whole (docs/decisions/0110):

1. ``plan``, once a round: numbers only. From who contributed, and from the norms or inner products of their updates if the
   strategy asks for them (``measure``), it decides by how much each update counts.
2. the updates of a part of the model (some of its tensors) become one float64 number for each of the model's: their weighted
   sum, which streams (``sums``), or what ``combine`` makes of all of them at once (``rows``), such as a median.
3. ``step``, on a few thousand numbers at a time: from those, the base model and the server state, the new model and state.

Integers and truth values, such as BatchNorm's counters, do not take part in ``step``: they are averaged and rounded. Nor do tensors
for which a strategy has a ``reduction`` of its own, such as a sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from propeller.fl.strategies.contribution import Contribution, StrategyInputError
from propeller.fl.strategies.reductions import Reduction
from propeller.fl.tensors import (
    FREE,
    Array,
    Float64,
    Shapes,
    TensorError,
    Tensors,
    check_shapes,
    is_floating,
)

Mode: TypeAlias = Literal["sync", "async"]
"""How an experiment gathers updates: in rounds, all from one model, or asynchronously, from models of different age."""

EXTRA = "@"
"""Names of tensors that an update or a model carries beside the model's start with this: ``@control/layer1.weight``."""


class Measure(StrEnum):
    """What a first pass over all updates computes of their differences to their base models, in float64."""

    NONE = "none"
    NORMS = "norms"
    """The Euclidean norm of each."""
    GRAM = "gram"
    """The inner products of each two, from which all distances follow."""


@dataclass(frozen=True)
class ServerState:
    """What a strategy keeps from round to round: tensors named ``KIND/TENSOR``, and a few JSON values."""

    tensors: Tensors = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What the first pass gave: norms of shape ``[n]``, inner products of shape ``[n, n]``."""

    norms: Float64 | None = None
    gram: Float64 | None = None

    def squared_distances(self) -> Float64:
        """``‖Δ_i - Δ_j‖²`` of each two updates, from their inner products.

        Raises:
            TensorError: the strategy's ``measure`` is not ``GRAM``.
        """
        if self.gram is None:
            raise TensorError("distances need the inner products of the updates")
        squares = np.diag(self.gram)
        products = self.gram.copy()
        np.fill_diagonal(products, 0.0)  # infinite where a norm is
        distances: Float64 = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
        np.fill_diagonal(distances, 0.0)
        return distances


@dataclass(frozen=True)
class Plan:
    """What a strategy decides once a round.

    Attributes:
        coefficients: one for each contribution: the mean is ``base + Σ c_k / divisor · (update_k - base_k)``. 0 leaves it out.
        divisor: what the sum is divided by. Whole numbers as coefficients, such as samples, make most sums of float32 exact.
        weights: by how much the integers and truth values of each count; ``None``: the coefficients.
        extra: coefficients for the tensors ``@KIND/…`` of the updates, by kind.
        scalars: numbers that ``step`` and ``combine`` need.
        values: the server state's values after this round.
        report: numbers about the round that a person would like to see, by name.
    """

    coefficients: Sequence[float]
    divisor: float = 1.0
    weights: Sequence[float] | None = None
    extra: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def by_samples(cls, contributions: Sequence[Contribution], **rest: Any) -> Self:
        """Each update counts by its share of all samples."""
        samples = [contribution.num_samples for contribution in contributions]
        total = sum(samples)
        # Divided by a power of two, which is exact: so the sum of large numbers does not leave float64.
        scale = 2 ** total.bit_length()
        return cls([count / scale for count in samples], total / scale, **rest)

    @classmethod
    def evenly(cls, count: int, **rest: Any) -> Self:
        """Each of so many updates counts the same."""
        scale = 2 ** count.bit_length()
        return cls([1 / scale] * count, count / scale, **rest)


@dataclass(frozen=True)
class Block:
    """Some numbers of one floating-point tensor, flat and in float64.

    Attributes:
        base_array: the model's, in its dtype.
        mean: what the updates became, as weights: ``base + Σ c_k / divisor · (update_k - base_k)``, or the result of ``combine``.
        state: the server state's, by kind.
        extra: ``Σ c_k · extra_k`` with the plan's coefficients for them, by kind.
    """

    base_array: Array
    mean: Float64
    state: Mapping[str, Float64] = field(default_factory=dict)
    extra: Mapping[str, Float64] = field(default_factory=dict)

    @cached_property
    def base(self) -> Float64:
        """The model's; converted for those who ask."""
        return self.base_array.astype(np.float64)

    @property
    def delta(self) -> Float64:
        """``Σ c_k / divisor · (update_k - base_k)``: what the optimizers of servers call the pseudo-gradient, with its sign turned."""
        return self.mean - self.base


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class _OfTensors:
    """Marks the fields of strategies that have patterns of tensors' names."""


Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple), _OfTensors()
]
"""Names of tensors, which may have * and ?."""

_MOST_NAMED = 20
"""The most tensors that an error names."""


class Strategy(BaseModel, ABC):
    """The base of all strategies. A subclass has its parameters as fields, with their ranges, defaults and descriptions.

    It has no state of its own: the same arguments give the same results in any process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ClassVar[str]
    """What experiment files call it."""
    paper: ClassVar[str]
    """Where it is from: authors, title, venue, year, number at arXiv."""
    measure: ClassVar[Measure] = Measure.NONE
    rows: ClassVar[bool] = False
    """Whether it needs all updates of a part at once (``combine``); otherwise they stream through a sum."""
    needs_base: ClassVar[bool] = True
    """Whether its result depends on the base model, beyond dtypes and shapes."""
    state_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of server-state tensors: for each, one beside each floating-point tensor of the model."""
    extra_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of tensors that each update carries as ``@KIND/TENSOR`` beside each floating-point tensor of the model."""
    device_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of server-state tensors that devices get with the model, as ``@KIND/TENSOR``."""
    keeps_device_state: ClassVar[bool] = False
    """Whether devices must keep something from round to round. True of every strategy with ``personal`` too."""
    only_mode: ClassVar[Mode | None] = None
    """The one mode of experiments that it is for; ``None``: both."""
    only_because: ClassVar[str] = ""
    """Why, where ``only_mode`` says so: what follows "as" in the error."""

    trained: Patterns = Field(
        (),
        description="names of the tensors that are trained, which may have * and ?, such as `lora_*`: updates carry these alone, and "
        "the model keeps the others as they are; left out: all",
    )
    personal: Patterns = Field(
        (),
        description="names of tensors that stay on the devices, which may have * and ?, such as `bn*.weight`: updates do not "
        "carry them and the model keeps its own (FedBN, FedPer)",
    )

    @property
    def needs_device_state(self) -> bool:
        """Whether devices must keep something from round to round."""
        return self.keeps_device_state or bool(self.personal)

    @property
    def min_updates(self) -> int:
        """The fewest updates that it can work with."""
        return 1

    def check_size(self, field: str, updates: int) -> None:
        """Check that it can work with rounds of so many updates.

        Args:
            field: what says how many there are, for the error.
            updates: the most that there are.

        Raises:
            StrategyInputError: it needs more, or can work with fewer only.
        """
        if updates < self.min_updates:
            raise StrategyInputError(
                f"{field} is {updates}, but {self.name} with these parameters needs at least {self.min_updates} updates a round: "
                "raise it, or change the strategy's parameters"
            )

    def check_sampling(self, field: str) -> None:
        """Check that it can work with rounds in which only some of the experiment's devices take part.

        Args:
            field: what says so, for the error.

        Raises:
            StrategyInputError: it has to know something more.
        """

    def check_names(self, names: Collection[str]) -> None:
        """Check that each of its patterns matches a tensor of the model.

        Args:
            names: of the model's tensors.

        Raises:
            StrategyInputError: naming the field, the pattern and what there is.
        """
        for field_name, info in type(self).model_fields.items():
            if not any(isinstance(one, _OfTensors) for one in info.metadata):
                continue
            for pattern in getattr(self, field_name):
                if not any(fnmatchcase(name, pattern) for name in names):
                    some = sorted(names)
                    more = f" and {len(some) - _MOST_NAMED} more" if len(some) > _MOST_NAMED else ""
                    raise StrategyInputError(
                        f"strategy.{field_name}: {pattern!r} matches no tensor of the model; "
                        f"there are {', '.join(some[:_MOST_NAMED])}{more}"
                    )

    def check_mode(self, mode: Mode) -> None:
        """Check that it is for experiments that gather updates in this way.

        Raises:
            StrategyInputError: it is for the other; the text says why and what to do.
        """
        if self.only_mode in {None, mode}:
            return
        remedy = (
            'leave strategy out, which is fedbuff, name one for both modes, or set mode = "sync"'
            if mode == "async"
            else 'set mode = "async", or use fedavg'
        )
        raise StrategyInputError(
            f'strategy.name: {self.name} is for mode.kind = "{self.only_mode}", as {self.only_because}: {remedy}'
        )

    def is_personal(self, tensor: str) -> bool:
        """Whether a tensor stays on the devices."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.personal)

    def is_frozen(self, tensor: str) -> bool:
        """Whether a tensor is not trained, and stays as it is in the model."""
        return bool(self.trained) and not any(fnmatchcase(tensor, pattern) for pattern in self.trained)

    def is_kept(self, tensor: str) -> bool:
        """Whether updates do not carry a tensor, and the model keeps its own: it is personal, or frozen."""
        return self.is_personal(tensor) or self.is_frozen(tensor)

    @property
    def free_patterns(self) -> Sequence[str]:
        """Names of tensors, which may have * and ?, of any length in updates and in the model that is made of them.

        They are opaque bytes (uint8), never a difference to the base model, and have a ``reduction``.
        """
        return ()

    def is_free(self, tensor: str) -> bool:
        """Whether ``free_patterns`` names a tensor."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.free_patterns)

    def learns(self, tensor: str, array: Array) -> bool:
        """Whether ``step`` makes this tensor: it is floating point, neither personal nor frozen, and not reduced otherwise."""
        return (
            is_floating(array.dtype)
            and not self.is_kept(tensor)
            and self.reduction(tensor, array[:0] if array.ndim else array) is None
        )

    def reduction(self, _tensor: str, _base: Array) -> Reduction | None:
        """What a tensor of all updates becomes where that is neither a mean nor what ``combine`` makes.

        Args:
            _tensor: its name.
            _base: the model's, flat.
        """
        return None

    def update_shapes(self, base: Tensors) -> Shapes:
        """Names and shapes of what an update has for these tensors of the model: without personal and frozen ones, with extra ones;
        of ``FREE`` ones the length is not known.

        The arrays of ``base`` may be of any memory: only their shapes and dtypes are looked at.
        """
        shapes = {
            name: FREE if self.is_free(name) else array.shape
            for name, array in base.items()
            if not self.is_kept(name)
        }
        for kind in self.extra_kinds:
            shapes |= {
                f"{EXTRA}{kind}/{name}": array.shape
                for name, array in base.items()
                if self.learns(name, array)
            }
        return shapes

    def check_update(self, base: Tensors, update: Tensors) -> None:
        """Check that an update has what ``update_shapes`` says, of any dtypes.

        Raises:
            TensorError: naming the tensor and what is wrong with it.
        """
        expected = self.update_shapes(base)
        for name in expected:
            if name.startswith(EXTRA) and name not in update:
                raise TensorError(
                    f"is missing; with {self.name} an update carries it beside the model's tensors", name
                )
        for name in update:
            if name in base and name not in expected:
                field = "stays on the devices (strategy.personal)"
                if self.is_frozen(name):
                    field = "is not trained (strategy.trained)"
                raise TensorError(f"{field}; an update must not carry it", name)
        check_shapes(update, expected)

    def update_names(self, names: Sequence[str]) -> list[str]:
        """Names that an update may have for these tensors of the model."""
        return [*names, *(f"{EXTRA}{kind}/{name}" for kind in self.extra_kinds for name in names)]

    def state_names(self, names: Sequence[str]) -> list[str]:
        """Names that the server state may have for these tensors of the model."""
        return [f"{kind}/{name}" for kind in self.state_kinds for name in names]

    def initial_values(self) -> dict[str, Any]:
        """The server state's values before the first round."""
        return {}

    def initial_number(self, _kind: str) -> float:
        """What server-state tensors are filled with before the first round."""
        return 0.0

    def initial_state(self, base: Tensors) -> Tensors:
        """The server-state tensors for these tensors of the model before the first round, in at least float32."""
        return {
            f"{kind}/{name}": np.full(
                array.shape, self.initial_number(kind), np.result_type(array.dtype, np.float32)
            )
            for kind in self.state_kinds
            for name, array in base.items()
            if self.learns(name, array)
        }

    def init(self, base: Tensors) -> ServerState:
        """The server state before the first round."""
        return ServerState(self.initial_state(base), self.initial_values())

    def device_values(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """What devices are told besides the strategy's name, ``trained``, ``personal`` and ``device_kinds``."""
        return {}

    def for_devices(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What devices get as ``FL_STRATEGY``; empty if there is nothing that they must know.

        Args:
            values: the server state's values; empty before the first round.
        """
        told = self.device_values(values or self.initial_values())
        if free := self.free_patterns:
            told["free"] = list(free)
        if self.trained:
            told["trained"] = list(self.trained)
        if self.personal:
            told["personal"] = list(self.personal)
        if self.device_kinds:
            told["tensors"] = list(self.device_kinds)
        return {"name": self.name, **told} if told else {}

    def check(self, contribution: Contribution) -> None:
        """Check that a contribution has what the strategy needs of it.

        Raises:
            InvalidError: naming what is missing and how a program reports it.
        """

    @abstractmethod
    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Decide by how much each update counts.

        Args:
            contributions: at least ``min_updates``; each has passed ``check``.
            values: the server state's.
            measured: what ``measure`` asks for.

        Raises:
            InvalidError: nothing can be made of these contributions.
        """

    def combine(self, _plan: Plan, _rows: Float64) -> Float64:
        """Make one number of those of all updates: ``[n, m]`` weights, in the order of the contributions, to ``[m]``.

        Only for strategies with ``rows``; works on each column by itself, and may change ``rows``.
        """
        raise NotImplementedError(f"{self.name} has rows, but no method combine")

    def step(self, _plan: Plan, block: Block) -> tuple[Float64, Mapping[str, Float64]]:
        """The new model's numbers, and the new server state's by kind; each number by itself."""
        return block.mean, {}
