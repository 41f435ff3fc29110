"""q-FedAvg: devices on which the model is bad count more."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.contribution import Contribution, StrategyInputError, require_metric
from propeller.fl.strategies.strategy import Measure, Measured, Mode, Plan, Strategy

_SMALLEST_LOSS = 1e-10
"""Added to each loss, as in the authors' code: its power ``q - 1`` would be infinite at 0."""


class QFedAvg(Strategy):
    """``w = w + Σ F_k^q L Δ_k / Σ h_k`` with ``h_k = q F_k^(q-1) ‖L Δ_k‖² + L F_k^q``, ``L = 1 / lr``.

    Li, Sanjabi, Beirami and Smith, *Fair Resource Allocation in Federated Learning*, ICLR 2020 (arXiv:1905.10497), algorithm 2. ``F_k`` is
    the loss of the round's base model on the device's data, before it trains. ``q = 0`` is the plain mean; the larger ``q``, the more
    equal the losses become.
    """

    name: ClassVar[str] = "qfedavg"
    paper: ClassVar[str] = (
        "Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497, algorithm 2"
    )
    only_mode: ClassVar[Mode | None] = "sync"
    only_because: ClassVar[str] = "it compares the losses of one model on the data of all devices"
    measure: ClassVar[Measure] = Measure.NORMS

    q: float = Field(1.0, ge=0, description="fairness q; the paper tries 0.001 to 15")
    lr: float = Field(
        gt=0,
        description="the learning rate with which the devices train; its inverse estimates the constant L",
    )
    metric: str = Field(
        "loss_before", min_length=1, description="the metric that is the loss of the base model"
    )

    def check(self, contribution: Contribution) -> None:
        """The loss must be there, and not below 0."""
        loss = require_metric(
            self.name, contribution, self.metric, "the loss of the round's base model, before training"
        )
        if loss < 0:
            raise StrategyInputError(
                f"{contribution}: {self.name} needs a loss of at least 0, the metric {self.metric!r} is {loss:g}"
            )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts by its loss to the power of ``q``."""
        del values
        if measured.norms is None:
            raise StrategyInputError(f"{self.name} needs the norms of the updates")
        for contribution, norm in zip(contributions, measured.norms, strict=True):
            if not np.isfinite(norm):
                raise StrategyInputError(
                    f"{contribution}: its numbers are too large for {self.name}, which squares them"
                )
        losses = [contribution.metrics[self.metric] + _SMALLEST_LOSS for contribution in contributions]
        with np.errstate(over="ignore"):  # what leaves float64 is refused below
            constant = np.float64(1) / self.lr
            powers = constant * np.power(losses, self.q)
            slopes = self.q * np.power(losses, self.q - 1)
            estimates = (slopes * np.square(constant * measured.norms) if self.q else 0.0) + powers
            divisor = float(estimates.sum())
        if not np.isfinite(divisor):
            worst = contributions[int(np.argmax(estimates))]
            raise StrategyInputError(
                f"{worst}: its loss, {worst.metrics[self.metric]:g}, or its difference to the model is too large for {self.name} "
                f"with strategy.q {self.q:g} and strategy.lr {self.lr:g}; lower q, or look at the device's data"
            )
        return Plan(powers.tolist(), divisor)
