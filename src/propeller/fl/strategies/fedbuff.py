"""FedBuff: asynchronous rounds over a buffer of updates, old ones of which count less."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from propeller.fl.strategies.contribution import Contribution
from propeller.fl.strategies.strategy import Block, Measured, Mode, Plan, Strategy
from propeller.fl.tensors import Float64


class FedBuff(Strategy):
    """``w = w + η_g / K Σ s(τ_k) Δ_k`` with ``s(τ) = (1 + τ)^-a``, for ``K`` updates that are ``τ_k`` versions old.

    Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, *Federated Learning with Buffered Asynchronous Aggregation*, AISTATS 2022
    (arXiv:2106.06639), algorithm 1, with the polynomial staleness of section 5 (``a = 0.5``). ``Δ_k`` is the difference to the model that the
    device started from. Where nothing is stale, as in rounds, it would be the plain mean.
    """

    name: ClassVar[str] = "fedbuff"
    paper: ClassVar[str] = (
        "Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, arXiv:2106.06639, algorithm 1"
    )
    only_mode: ClassVar[Mode | None] = "async"
    only_because: ClassVar[str] = (
        "in rounds no update is stale, and it would be a mean that ignores how many samples each has"
    )

    server_lr: float = Field(1.0, gt=0, description="learning rate η_g of the server")
    exponent: float = Field(
        0.5, ge=0, description="exponent a of the staleness weight; 0: old updates count the same"
    )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts by its staleness."""
        del values, measured
        weights = [(1.0 + contribution.staleness) ** -self.exponent for contribution in contributions]
        oldest = max(contribution.staleness for contribution in contributions)
        return Plan(weights, float(len(weights)), report={"max_staleness": oldest})

    def step(self, _plan: Plan, block: Block) -> tuple[Float64, Mapping[str, Float64]]:
        """Move by the server's learning rate."""
        return block.mean if self.server_lr == 1 else block.base + self.server_lr * block.delta, {}
