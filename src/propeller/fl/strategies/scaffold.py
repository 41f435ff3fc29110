"""SCAFFOLD: control variates correct the drift of devices whose data differ."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from propeller.fl.strategies.contribution import Contribution, StrategyInputError
from propeller.fl.strategies.strategy import Block, Measured, Mode, Plan, Strategy
from propeller.fl.tensors import Float64


class Scaffold(Strategy):
    """``x = x + η_g / |S| Σ Δy_i`` and ``c = c + |S| / N · 1 / |S| Σ Δc_i``, with devices that add ``c - c_i`` to their gradients.

    Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*, ICML 2020
    (arXiv:1910.06378), algorithm 1, with option II on the devices: ``c_i⁺ = c_i - c + (x - y_i) / (K η_l)``. An update carries
    ``Δc_i = c_i⁺ - c_i`` as ``@control/TENSOR``.
    """

    name: ClassVar[str] = "scaffold"
    paper: ClassVar[str] = (
        "Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020, arXiv:1910.06378, "
        "algorithm 1, option II"
    )
    state_kinds: ClassVar[tuple[str, ...]] = ("control",)
    extra_kinds: ClassVar[tuple[str, ...]] = ("control",)
    device_kinds: ClassVar[tuple[str, ...]] = ("control",)
    keeps_device_state: ClassVar[bool] = True
    only_mode: ClassVar[Mode | None] = "sync"
    only_because: ClassVar[str] = "its control variates are differences to the model that a round starts from"

    server_lr: float = Field(1.0, gt=0, description="learning rate η_g of the server")
    devices: int | None = Field(
        None,
        ge=1,
        description="number N of devices in the experiment; left out: each of them takes part in each round",
    )

    def device_values(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """That there are control variates."""
        return {"control": True}

    def check_size(self, field: str, updates: int) -> None:
        """No more updates than devices."""
        if self.devices is not None and updates > self.devices:
            raise StrategyInputError(
                f"strategy.devices is {self.devices}, but {field} is {updates}; one of them is wrong"
            )

    def check_sampling(self, field: str) -> None:
        """The number of devices must be there."""
        if self.devices is None:
            raise StrategyInputError(
                f"strategy.devices: {self.name} needs the number of all devices of the experiment where only some take part in a "
                f"round ({field}): without it the control variates would change as if there were no others"
            )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts the same; control variates count by all devices."""
        del values, measured
        count = len(contributions)
        if self.devices is not None and count > self.devices:
            raise StrategyInputError(
                f"strategy.devices is {self.devices}, but {count} devices sent an update; set it to how many there are"
            )
        devices = self.devices or count
        return Plan.evenly(count, extra={"control": [1 / devices] * count})

    def step(self, _plan: Plan, block: Block) -> tuple[Float64, Mapping[str, Float64]]:
        """Move both."""
        control = block.state["control"] + block.extra["control"]
        # The mean itself where η_g is 1, so that equal updates give exactly that update.
        model = block.mean if self.server_lr == 1 else block.base + self.server_lr * block.delta
        return model, {"control": control}
