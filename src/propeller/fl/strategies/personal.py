"""Personalisation: what a device learns for itself."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from propeller.fl.strategies.mean import MeanStrategy
from propeller.fl.strategies.strategy import Patterns


class Ditto(MeanStrategy):
    """FedAvg; beside it each device trains a model of its own, which ``λ (v - w_t)`` in its gradients pulls towards the round's.

    Li, Hu, Beirami and Smith, *Ditto: Fair and Robust Federated Learning Through Personalization*, ICML 2021 (arXiv:2012.04221),
    algorithm 1: devices minimise ``F_k(v_k) + λ/2 ‖v_k - w_t‖²``. The model of its own never leaves the device.
    """

    name: ClassVar[str] = "ditto"
    paper: ClassVar[str] = (
        "Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021, arXiv:2012.04221, algorithm 1"
    )
    needs_base: ClassVar[bool] = False
    keeps_device_state: ClassVar[bool] = True

    weight: float = Field(
        1.0,
        gt=0,
        alias="lambda",
        description="how strongly λ the devices' own models are pulled towards the shared one",
    )

    def device_values(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """``λ``."""
        return {"lambda": self.weight}


class FedBN(MeanStrategy):
    """FedAvg of all but the normalisation layers, which stay on the devices.

    Li, Jiang, Zhang, Kamp and Dou, *FedBN: Federated Learning on Non-IID Features via Local Batch Normalization*, ICLR 2021
    (arXiv:2102.07623), algorithm 1. Which tensors those are cannot be told from a model: ``personal`` names them.
    """

    name: ClassVar[str] = "fedbn"
    paper: ClassVar[str] = (
        "Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021, arXiv:2102.07623, "
        "algorithm 1"
    )
    needs_base: ClassVar[bool] = False
    keeps_device_state: ClassVar[bool] = True

    personal: Patterns = Field(
        min_length=1, description="names of the normalisation layers' tensors, which may have * and ?: `bn*`"
    )


class FedPer(MeanStrategy):
    """FedAvg of the base layers; the layers above them stay on the devices.

    Arivazhagan, Aggarwal, Singh and Choudhary, *Federated Learning with Personalization Layers*, 2019 (arXiv:1912.00818),
    algorithms 1 and 2. ``personal`` names the personalisation layers.
    """

    name: ClassVar[str] = "fedper"
    paper: ClassVar[str] = (
        "Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv:1912.00818, algorithms 1 and 2"
    )
    needs_base: ClassVar[bool] = False
    keeps_device_state: ClassVar[bool] = True

    personal: Patterns = Field(
        min_length=1,
        description="names of the personalisation layers' tensors, which may have * and ?: `head.*`",
    )
