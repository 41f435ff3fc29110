"""FedNova: updates are normalised by how much local work is behind them."""

from collections.abc import Mapping, Sequence
from math import expm1, fsum, log1p
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from propeller.fl.strategies.contribution import Contribution, require_steps
from propeller.fl.strategies.strategy import Measured, Mode, Plan, Strategy


class FedNova(Strategy):
    """``w = w + τ_eff Σ p_k Δ_k / a_k``: what a step of each device does counts by its samples, however many steps it took.

    Wang, Liu, Liang, Joshi and Poor, *Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization*, NeurIPS
    2020 (arXiv:2007.07481), equations 11 and 12: ``p_k = n_k / n``, and ``a_k = ‖a‖₁`` for ``τ_k`` local steps is

    - ``τ_k`` for plain SGD,
    - ``(τ_k - ρ (1 - ρ^τ_k) / (1 - ρ)) / (1 - ρ)`` with local momentum ``ρ``,
    - ``(1 - (1 - α)^τ_k) / α`` with a proximal term, ``α = η μ`` of the local learning rate and the term's weight.

    ``τ_eff = Σ p_k a_k``, so that devices with the same ``τ_k`` give FedAvg.
    """

    name: ClassVar[str] = "fednova"
    paper: ClassVar[str] = (
        "Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020, "
        "arXiv:2007.07481, equations 11 and 12"
    )
    only_mode: ClassVar[Mode | None] = "sync"
    only_because: ClassVar[str] = (
        "the number of steps by which it scales a round is that of devices which start from one model"
    )

    momentum: float = Field(0.0, ge=0, lt=1, description="momentum ρ of the devices' optimizer")
    proximal: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="α = η μ: the devices' learning rate times the weight of their proximal term",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.momentum and self.proximal:
            raise ValueError(
                "momentum and proximal cannot both be above 0; the paper has no coefficients for that"
            )
        return self

    def check(self, contribution: Contribution) -> None:
        """The number of local steps must be there."""
        require_steps(self.name, contribution)

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts by its samples, and by its steps the other way round."""
        del values, measured
        even = Plan.by_samples(contributions)
        work = [self.local_work(require_steps(self.name, contribution)) for contribution in contributions]
        effective = (
            fsum(share * one for share, one in zip(even.coefficients, work, strict=True)) / even.divisor
        )
        coefficients = [share * (effective / one) for share, one in zip(even.coefficients, work, strict=True)]
        return Plan(
            coefficients, even.divisor, weights=even.coefficients, report={"effective_steps": effective}
        )

    def local_work(self, steps: int) -> float:
        """``‖a‖₁`` for so many local steps."""
        if self.momentum:
            decayed = self.momentum * (1 - self.momentum**steps) / (1 - self.momentum)
            return (steps - decayed) / (1 - self.momentum)
        if self.proximal:
            # 1 - (1 - α)^τ, of which rounding leaves nothing where α is small.
            return -expm1(steps * log1p(-self.proximal)) / self.proximal
        return float(steps)
