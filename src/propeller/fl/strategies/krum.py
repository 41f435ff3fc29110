"""Krum and what is built on it: updates that are near to enough others are chosen."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.contribution import Contribution, StrategyInputError
from propeller.fl.strategies.order import in_order, mean_of, middle
from propeller.fl.strategies.strategy import Measure, Measured, Plan, Strategy
from propeller.fl.tensors import Float64

_KRUM = (
    "Blanchard, El Mhamdi, Guerraoui and Stainer, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, "
    "NeurIPS 2017, arXiv:1703.02757"
)


class KrumStrategy(Strategy):
    """What they have in common: how many devices may be bad, and the distances between all updates."""

    measure: ClassVar[Measure] = Measure.GRAM
    needs_base: ClassVar[bool] = False

    byzantine: int = Field(1, ge=0, description="the most devices f that may send anything")

    @property
    def min_updates(self) -> int:
        """``2 f + 3``: the proof needs more than ``2 f + 2``."""
        return 2 * self.byzantine + 3

    def ranking(self, distances: Float64, slots: Sequence[int]) -> list[int]:
        """Updates by their score, the best first: the sum of squared distances to their ``n - f - 2`` nearest others.

        Two that are each other's nearest may have equal scores; then slots decide, not the order in which they are given.
        """
        scores = krum_scores(distances, max(1, len(distances) - self.byzantine - 2))
        return sorted(range(len(scores)), key=lambda number: (scores[number], slots[number]))


class Krum(KrumStrategy):
    """The one update with the least sum of squared distances to its ``n - f - 2`` nearest others.

    Blanchard, El Mhamdi, Guerraoui and Stainer, *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*, NeurIPS 2017
    (arXiv:1703.02757), section 4. Of equal scores, the first participant's. Samples do not count.
    """

    name: ClassVar[str] = "krum"
    paper: ClassVar[str] = f"{_KRUM}, section 4"

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Choose one."""
        del values
        best = self.ranking(measured.squared_distances(), _slots(contributions))[0]
        return Plan(_chosen([best], len(contributions)), report={"chosen_slot": contributions[best].slot})


class MultiKrum(KrumStrategy):
    """The mean of the ``m`` updates with the best scores of Krum.

    Blanchard, El Mhamdi, Guerraoui and Stainer, *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*, NeurIPS 2017
    (arXiv:1703.02757), section 5 (m-Krum), by default with ``m = n - f`` as there. Samples do not count.
    """

    name: ClassVar[str] = "multi_krum"
    paper: ClassVar[str] = f"{_KRUM}, section 5"

    select: int | None = Field(
        None, ge=1, description="how many updates m are averaged; left out: all but `byzantine`"
    )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Choose ``m``."""
        del values
        count = len(contributions)
        select = count - self.byzantine if self.select is None else self.select
        if select > count - self.byzantine:
            raise StrategyInputError(
                f"strategy.select is {select}, but of {count} updates {self.byzantine} may be bad (strategy.byzantine): it can be "
                f"at most {count - self.byzantine}"
            )
        chosen = self.ranking(measured.squared_distances(), _slots(contributions))[:select]
        return Plan(_chosen(chosen, count), float(select), report={"chosen": select})


class Bulyan(KrumStrategy):
    """Krum chooses ``θ = n - 2 f`` updates, one after the other; of these, each number is the mean of the ``θ - 2 f`` nearest to their median.

    El Mhamdi, Guerraoui and Rouault, *The Hidden Vulnerability of Distributed Learning in Byzantium*, ICML 2018 (arXiv:1802.07927),
    section 4. Where fewer updates are left than Krum needs, each is still scored by its nearest other. Samples do not count.
    """

    name: ClassVar[str] = "bulyan"
    paper: ClassVar[str] = (
        "El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018, "
        "arXiv:1802.07927, section 4"
    )
    rows: ClassVar[bool] = True

    @property
    def min_updates(self) -> int:
        """``4 f + 3``."""
        return 4 * self.byzantine + 3

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Choose ``θ``."""
        del values
        distances = measured.squared_distances()
        left, chosen = list(range(len(contributions))), []
        slots = np.array(_slots(contributions))
        select = len(contributions) - 2 * self.byzantine
        for _ in range(select):
            best = left.pop(self.ranking(distances[np.ix_(left, left)], slots[left].tolist())[0])
            chosen.append(best)
        return Plan(
            _chosen(chosen, len(contributions)),
            float(select),
            scalars={"kept": select - 2 * self.byzantine},
            report={"chosen": select},
        )

    def combine(self, plan: Plan, rows: Float64) -> Float64:
        """The mean of those in each column that are nearest to its median."""
        kept = int(plan.scalars["kept"])
        ordered = in_order(rows)
        nearest = np.argsort(np.abs(ordered - middle(ordered)[:, None]), axis=1, kind="stable")[:, :kept]
        return mean_of(np.take_along_axis(ordered, np.sort(nearest, axis=1), axis=1))


def krum_scores(distances: Float64, neighbours: int) -> Float64:
    """For each row of squared distances, the sum of the so many least to others."""
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    scores: Float64 = others[:, : min(neighbours, len(others) - 1)].sum(axis=1)
    return scores


def _slots(contributions: Sequence[Contribution]) -> list[int]:
    return [contribution.slot for contribution in contributions]


def _chosen(numbers: Sequence[int], count: int) -> list[float]:
    return [float(number in numbers) for number in range(count)]
