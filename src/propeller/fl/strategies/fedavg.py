"""Federated averaging: the mean of the updates, weighted by their samples."""

from typing import ClassVar

from propeller.fl.strategies.mean import MeanStrategy


class FedAvg(MeanStrategy):
    """The mean of the updates, weighted by their samples: ``w = Σ n_k / n · w_k``.

    McMahan, Moore, Ramage, Hampson and Agüera y Arcas, *Communication-Efficient Learning of Deep Networks from Decentralized
    Data*, AISTATS 2017 (arXiv:1602.05629), algorithm 1.

    With ``K`` updates of floating-point numbers, the result differs from the exact mean by at most
    ``(K + 2) · 2**-53 · Σ n_k |w_k| / n``, and then by the rounding to the model's own dtype.
    """

    name: ClassVar[str] = "fedavg"
    paper: ClassVar[str] = (
        "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017, "
        "arXiv:1602.05629"
    )
    needs_base: ClassVar[bool] = False
