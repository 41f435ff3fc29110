"""Server optimizers: the mean of the updates is a gradient for an optimizer on the server."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.mean import MeanStrategy
from propeller.fl.strategies.strategy import Block, Plan
from propeller.fl.tensors import Float64

_FEDOPT = "Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295, algorithm 2"


class FedAvgM(MeanStrategy):
    """FedAvg with momentum on the server: ``v = β v + Δ``, ``w = w + η v`` for the mean difference ``Δ`` to the model.

    Hsu, Qi and Brown, *Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification*, 2019
    (arXiv:1909.06335), section 4.3 with ``η = 1``. With ``nesterov``: ``w = w + η (Δ + β v)``.
    """

    name: ClassVar[str] = "fedavgm"
    paper: ClassVar[str] = (
        "Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, "
        "2019, arXiv:1909.06335"
    )
    state_kinds: ClassVar[tuple[str, ...]] = ("momentum",)

    server_lr: float = Field(1.0, gt=0, description="learning rate η of the server")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum β of the server")
    nesterov: bool = Field(False, description="Nesterov's momentum instead of the plain one")

    def step(self, _plan: Plan, block: Block) -> tuple[Float64, Mapping[str, Float64]]:
        """Move along the momentum."""
        momentum = self.momentum * block.state["momentum"] + block.delta
        direction = block.delta + self.momentum * momentum if self.nesterov else momentum
        return block.base + self.server_lr * direction, {"momentum": momentum}


class AdaptiveStrategy(MeanStrategy):
    """The part of the adaptive strategies that is the same: ``m = β₁ m + (1 - β₁) Δ``, ``w = w + η m / (√v + τ)``.

    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, *Adaptive Federated Optimization*, ICLR 2021
    (arXiv:2003.00295), algorithm 2. As there, without bias correction, and ``v`` begins as ``τ²``. Algorithm 2 takes the plain mean of
    the differences, which is ``weighting = "uniform"``.
    """

    paper: ClassVar[str] = _FEDOPT
    state_kinds: ClassVar[tuple[str, ...]] = ("m", "v")

    server_lr: float = Field(0.1, gt=0, description="learning rate η of the server")
    beta_1: float = Field(0.9, ge=0, lt=1, description="decay β₁ of the first moment")
    tau: float = Field(1e-3, gt=0, description="degree of adaptivity τ: the smaller, the more")

    def initial_number(self, kind: str) -> float:
        """``v`` begins as ``τ²``."""
        return self.tau**2 if kind == "v" else 0.0

    def step(self, _plan: Plan, block: Block) -> tuple[Float64, Mapping[str, Float64]]:
        """Move along the first moment, each number by its own rate."""
        m = self.beta_1 * block.state["m"] + (1 - self.beta_1) * block.delta
        v = self.second_moment(block.state["v"], np.square(block.delta))
        return block.base + self.server_lr * m / (np.sqrt(v) + self.tau), {"m": m, "v": v}

    @abstractmethod
    def second_moment(self, v: Float64, square: Float64) -> Float64:
        """The new ``v`` from the old one and ``Δ²``."""


class FedAdagrad(AdaptiveStrategy):
    """Adagrad on the server: ``v = v + Δ²``. Reddi et al. 2021, algorithm 2; as in its experiments, ``β₁`` is 0 by default."""

    name: ClassVar[str] = "fedadagrad"

    beta_1: float = Field(0.0, ge=0, lt=1, description="decay β₁ of the first moment")

    def second_moment(self, v: Float64, square: Float64) -> Float64:
        """All squares so far."""
        return v + square


class FedAdam(AdaptiveStrategy):
    """Adam on the server: ``v = β₂ v + (1 - β₂) Δ²``. Reddi et al. 2021, algorithm 2."""

    name: ClassVar[str] = "fedadam"

    beta_2: float = Field(0.99, ge=0, lt=1, description="decay β₂ of the second moment")

    def second_moment(self, v: Float64, square: Float64) -> Float64:
        """A moving average of the squares."""
        return self.beta_2 * v + (1 - self.beta_2) * square


class FedYogi(AdaptiveStrategy):
    """Yogi on the server: ``v = v - (1 - β₂) Δ² sign(v - Δ²)``. Reddi et al. 2021, algorithm 2."""

    name: ClassVar[str] = "fedyogi"

    beta_2: float = Field(0.99, ge=0, lt=1, description="decay β₂ of the second moment")

    def second_moment(self, v: Float64, square: Float64) -> Float64:
        """Towards the squares, by steps that do not depend on how far they are."""
        return v - (1 - self.beta_2) * square * np.sign(v - square)
