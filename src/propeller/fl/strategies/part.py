"""One part of a model: its updates become the part's new weights and server state."""

from collections.abc import Sequence
from functools import partial
from math import fsum

import numpy as np

from propeller.fl.strategies.contribution import Contribution, UpdateError
from propeller.fl.strategies.integers import (
    IntegerMean,
    MajorityVote,
    as_weights,
    in_dtype,
    majority,
    moved,
    offsets,
)
from propeller.fl.strategies.reductions import Reduction
from propeller.fl.strategies.strategy import EXTRA, Block, Plan, Strategy
from propeller.fl.strategies.sums import ROW_BLOCK, SUM_BLOCK, WeightedSums, blocks
from propeller.fl.tensors import Array, Float64, TensorError, Tensors, check_shapes, is_floating, shapes_of


class PartAggregation:
    """The second pass over a round's updates, for some tensors of the model.

    ``add`` each update that the plan counts (``counts``), in the order of the contributions, then ``finish``. A strategy that sums
    holds one float64 for each number of the part and a few pending updates. One with ``rows`` holds the updates' arrays until
    the end, which may be memory-mapped files: it reads them once, a block at a time.
    """

    def __init__(
        self,
        strategy: Strategy,
        plan: Plan,
        contributions: Sequence[Contribution],
        bases: Sequence[Tensors],
        state: Tensors | None = None,
    ) -> None:
        """Begin a part.

        Args:
            strategy: makes the model.
            plan: what it decided for this round.
            contributions: those that the plan was made of.
            bases: the part's tensors of each base model; the first is the one that the result replaces.
            state: the server state's tensors for them; ``None`` before the first round.

        Raises:
            TensorError: the state does not fit.
        """
        self._strategy, self._plan, self._contributions, self._bases = strategy, plan, contributions, bases
        base = self._base = bases[0]
        initial = strategy.initial_state(base)
        self._state = initial if state is None else state
        check_shapes(self._state, shapes_of(initial), f"the server state of {strategy.name}")
        self._learned = {name: array.shape for name, array in base.items() if strategy.learns(name, array)}
        self._rows: dict[int, Tensors] = {}
        # Not a method of this object: the sums would keep it in a cycle, and its memory until a collection of garbage.
        self._refuse = partial(_refuse, contributions)
        self._sums = WeightedSums({} if strategy.rows else self._learned, self._refuse)
        self._extra = {
            kind: WeightedSums(
                {_extra(kind, name): shape for name, shape in self._learned.items()}, self._refuse
            )
            for kind in strategy.extra_kinds
        }
        self._weights = plan.weights if plan.weights is not None else plan.coefficients
        self._base_coefficients = _base_coefficients(plan, contributions, len(bases))
        self._reductions: dict[str, Reduction] = {
            name: reduction
            for name, array in base.items()
            if not strategy.is_kept(name)
            and (reduction := strategy.reduction(name, array.reshape(-1))) is not None
        }
        self._means: dict[str, IntegerMean | MajorityVote] = {}
        for name in () if strategy.rows else self._exact_names():
            mean = MajorityVote if base[name].dtype.kind == "b" else IntegerMean
            self._means[name] = mean(base[name].reshape(-1))

    def counts(self, number: int) -> bool:
        """Whether the ``number``-th contribution has any part in the result."""
        numbers = (self._plan.coefficients, self._weights, *self._plan.extra.values())
        return any(coefficients[number] for coefficients in numbers)

    def add(self, number: int, update: Tensors) -> None:
        """Add the ``number``-th contribution's tensors of this part; its arrays must not change any more.

        Raises:
            UpdateError: its names or shapes are not those that the strategy expects, or (here or later) it or an earlier one
                holds NaN or an infinity.
        """
        try:
            self._strategy.check_update(self._base, update)
        except TensorError as error:
            raise self._refuse(number, error) from None
        if self._strategy.rows:
            self._rows[number] = update
        self._sums.add(number, update, self._plan.coefficients[number])
        for name, reduction in self._reductions.items():
            try:
                reduction.add(self._as_weights(number, update, name), self._contributions[number].slot)
            except TensorError as error:
                raise self._refuse(number, TensorError(str(error), name)) from None
        for kind, sums in self._extra.items():
            sums.add(number, update, self._plan.extra[kind][number])
        for name, mean in self._means.items():
            if self._weights[number]:
                values = self._exact_values(number, update, name, slice(None))
                mean.add(values, self._weights[number])

    def finish(self) -> tuple[Tensors, Tensors]:
        """The part's new weights, in the base model's order and dtypes, and its new server state.

        Raises:
            UpdateError: as ``add``.
            TensorError: a result is not finite in its dtype.
        """
        sums = self._sums.sums()
        extra = {
            kind: {name: found[_extra(kind, name)] for name in self._learned}
            for kind, kind_sums in self._extra.items()
            for found in [kind_sums.sums()]
        }
        model: Tensors = {}
        state = {name: np.empty_like(array) for name, array in self._state.items()}
        for name, base in self._base.items():
            if name in self._learned:
                model[name] = np.empty(base.shape, base.dtype)
                for start, end in blocks(base.size, ROW_BLOCK if self._strategy.rows else SUM_BLOCK):
                    mean = self._mean(name, start, end, sums)
                    here = {kind: found[name][start:end] for kind, found in extra.items()}
                    self._step(name, start, end, mean, here, model[name], state)
            elif self._strategy.is_kept(name):
                model[name] = base
            elif name in self._reductions:
                reduced = self._reduced(name)
                model[name] = reduced if self._strategy.is_free(name) else reduced.reshape(base.shape)
            elif self._strategy.rows:
                model[name] = self._combined_exactly(name)
            else:
                model[name] = self._means[name].mean(fsum(self._weights)).reshape(base.shape)
        return model, state

    def _mean(self, name: str, start: int, end: int, sums: dict[str, Float64]) -> Float64:
        """A block of ``base + Σ c_k · (update_k - base_k)``, or of what the strategy makes of the rows."""
        if self._strategy.rows:
            rows = np.stack([self._row(number, name, start, end) for number in self._row_numbers()])
            return self._strategy.combine(self._plan, rows)
        mean = sums[name][start:end]
        for number, coefficient in self._base_coefficients:
            mean += coefficient * _float64(self._bases[number][name], start, end)
        if self._plan.divisor != 1:
            mean /= self._plan.divisor
        return mean

    def _step(
        self,
        name: str,
        start: int,
        end: int,
        mean: Float64,
        extra: dict[str, Float64],
        model: Array,
        state: Tensors,
    ) -> None:
        kinds = self._strategy.state_kinds
        block = Block(
            self._base[name].reshape(-1)[start:end],
            mean,
            {kind: _float64(self._state[f"{kind}/{name}"], start, end) for kind in kinds},
            extra,
        )
        with np.errstate(over="ignore", invalid="ignore"):
            numbers, new_state = self._strategy.step(self._plan, block)
            results = [(model, numbers), *((state[f"{kind}/{name}"], new_state[kind]) for kind in kinds)]
            for into, result in results:
                flat = into.reshape(-1)[start:end]
                flat[...] = result
                if not np.isfinite(flat).all():
                    raise TensorError(
                        f"the result of {self._strategy.name} is too large for {into.dtype}; the updates are far from the base "
                        "model, or a learning rate is too high",
                        name,
                    )

    def _row_numbers(self) -> list[int]:
        return [number for number in sorted(self._rows) if self._plan.coefficients[number]]

    def _row(self, number: int, name: str, start: int, end: int) -> Float64:
        """A block of an update, as weights."""
        contribution = self._contributions[number]
        row = _float64(self._rows[number][name], start, end)
        if not np.isfinite(row).all():
            raise self._refuse(number, _not_finite(name))
        if contribution.kind == "delta" or contribution.base:
            row += _float64(self._base[name], start, end)
            if contribution.kind == "weights":
                row -= _float64(self._bases[contribution.base][name], start, end)
        return row

    def _exact_names(self) -> list[str]:
        return [
            name
            for name in self._base
            if name not in self._learned and name not in self._reductions and not self._strategy.is_kept(name)
        ]

    def _as_weights(self, number: int, update: Tensors, name: str) -> Array:
        """All of a tensor that is reduced, as weights: float64, integers in int64 or uint64, truth values; free ones as they are."""
        base = self._base[name]
        if self._strategy.is_free(name):
            return update[name]
        if not is_floating(base.dtype):
            return self._exact_values(number, update, name, slice(None))
        values = _float64(update[name], 0, base.size)
        if not np.isfinite(values).all():
            raise self._refuse(number, _not_finite(name))
        if self._contributions[number].kind == "delta":
            values += _float64(self._bases[self._contributions[number].base][name], 0, base.size)
        return values

    def _reduced(self, name: str) -> Array:
        try:
            return self._reductions[name].result()
        except TensorError as error:
            raise TensorError(str(error), name) from None

    def _exact_values(self, number: int, update: Tensors, name: str, part: slice) -> Array:
        """Truth values as they are, integers as weights beside the base model's."""
        contribution = self._contributions[number]
        values = update[name].reshape(-1)[part]
        if is_floating(values.dtype) and not np.isfinite(values).all():
            raise self._refuse(number, _not_finite(name))
        base = self._base[name].reshape(-1)[part]
        if base.dtype.kind == "b":
            return values.astype(bool)
        if contribution.kind == "delta":
            return as_weights(values, base, None)
        of_base = self._bases[contribution.base][name].reshape(-1)[part] if contribution.base else base
        return as_weights(values, base, of_base)

    def _combined_exactly(self, name: str) -> Array:
        """What the strategy makes of the rows of an integer tensor, or of truth values."""
        base = self._base[name].reshape(-1)
        result = np.empty_like(base)
        for start, end in blocks(base.size, ROW_BLOCK):
            part = slice(start, end)
            rows = np.stack([self._exact_values(n, self._rows[n], name, part) for n in self._row_numbers()])
            if base.dtype.kind == "b":
                share = self._strategy.combine(self._plan, rows.astype(np.float64))
                result[part] = majority(base[part], share - 0.5)
                continue
            # About the middle one, so that float64 holds the differences exactly, however large the numbers are.
            centre = np.sort(rows, axis=0)[(len(rows) - 1) // 2]
            combined = self._strategy.combine(self._plan, offsets(rows, np.broadcast_to(centre, rows.shape)))
            result[part] = in_dtype(moved(centre, combined), base.dtype)
        return result.reshape(self._base[name].shape)


def _float64(array: Array, start: int, end: int) -> Float64:
    """A copy of a block: arithmetic with it must not be in the array's own dtype."""
    block: Float64 = array.reshape(-1)[start:end].astype(np.float64)
    return block


def _extra(kind: str, name: str) -> str:
    return f"{EXTRA}{kind}/{name}"


def _base_coefficients(
    plan: Plan, contributions: Sequence[Contribution], count: int
) -> list[tuple[int, float]]:
    """By how much each of ``count`` base models counts in a sum in which weights count themselves, not their differences."""
    found = []
    for number in range(count):
        own = fsum(
            coefficient
            for coefficient, contribution in zip(plan.coefficients, contributions, strict=True)
            if contribution.base == number and contribution.kind == "weights"
        )
        rest = (plan.divisor if number == 0 else 0.0) - own
        # Shares that are all of the divisor but for their rounding: then the base has no part, however large its numbers are.
        if abs(rest) > plan.divisor * len(contributions) * 2.0**-52:
            found.append((number, rest))
    return found


def _not_finite(name: str) -> TensorError:
    return TensorError("holds NaN or an infinity; every number must be finite", name)


def _refuse(contributions: Sequence[Contribution], number: int, error: TensorError) -> UpdateError:
    return UpdateError(number, contributions[number], error)
