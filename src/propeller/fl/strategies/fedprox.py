"""FedProx: devices are held near the round's model."""

from collections.abc import Mapping, Sequence
from sys import float_info
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from propeller.fl.strategies.contribution import Contribution, StrategyInputError, require_metric
from propeller.fl.strategies.mean import MeanStrategy
from propeller.fl.strategies.strategy import Measured, Plan

_STEP = 0.1
_FALLS = 5
_LARGEST = float_info.max


class _Progress(BaseModel):
    """The server state's values where ``μ`` follows the loss: ``μ``, the last loss, and how often it has fallen since it rose."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    mu: float = Field(ge=0)
    loss: float | None
    falls: int = Field(ge=0)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "_Progress":
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise StrategyInputError(f"the server state of fedprox: {name}: {first['msg']}") from None


class FedProx(MeanStrategy):
    """FedAvg of devices that minimise ``F_k(w) + μ/2 ‖w - w_t‖²``: they add ``μ (w - w_t)`` to their gradients.

    Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, *Federated Optimization in Heterogeneous Networks*, MLSys 2020
    (arXiv:1812.06127), algorithm 2. With ``adaptive``, section 5.3.2: ``μ`` grows by 0.1 when the loss has risen, and falls by 0.1
    when it has fallen in five rounds one after the other.
    """

    name: ClassVar[str] = "fedprox"
    paper: ClassVar[str] = (
        "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv:1812.06127, algorithm 2"
    )
    needs_base: ClassVar[bool] = False

    mu: float = Field(
        0.1,
        ge=0,
        description="weight μ of the proximal term, with `adaptive` the first one; the paper tries 0.001 to 1",
    )
    adaptive: bool = Field(False, description="whether μ follows the loss")
    metric: str = Field("loss", min_length=1, description="the metric that is the loss, where `adaptive`")

    def initial_values(self) -> dict[str, Any]:
        """Those of an experiment's first round."""
        return _Progress(mu=self.mu, loss=None, falls=0).model_dump() if self.adaptive else {}

    def device_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``μ``."""
        return {"mu": _Progress.read(values).mu if self.adaptive else self.mu}

    def check(self, contribution: Contribution) -> None:
        """Where ``adaptive``, the loss must be there."""
        if self.adaptive:
            require_metric(self.name, contribution, self.metric, "the loss that μ follows")

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """The mean, and the next ``μ``."""
        return super().plan(
            contributions, self._next(contributions, values) if self.adaptive else {}, measured
        )

    def _next(self, contributions: Sequence[Contribution], values: Mapping[str, Any]) -> dict[str, Any]:
        samples = sum(contribution.num_samples for contribution in contributions)
        loss = sum(one.metrics[self.metric] * (one.num_samples / samples) for one in contributions)
        loss = max(-_LARGEST, min(loss, _LARGEST))  # the shares' rounding may lead beyond it
        before = _Progress.read(values)
        mu, last, falls = before.mu, before.loss, before.falls
        if last is not None and loss > last:
            mu, falls = mu + _STEP, 0
        elif last is not None and loss < last:
            falls += 1
            if falls == _FALLS:
                mu, falls = max(0.0, mu - _STEP), 0
        # 0.1 has no exact binary form: a sum of many would not come back to where it began.
        return _Progress(mu=round(mu, 9), loss=loss, falls=falls).model_dump()
