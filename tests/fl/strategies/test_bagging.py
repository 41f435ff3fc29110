"""Bagging: bytes of any length are collected in the order of participants; other tensors are FedAvg's."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import InvalidError
from propeller.fl.experiment.needs import check_strategy
from propeller.fl.strategies import Contribution, UpdateError, aggregate, create_strategy
from propeller.fl.tensors import Array, TensorError, Tensors
from propeller.protocol.experiments import ExperimentSpec


def as_bytes(content: bytes) -> Array:
    return np.frombuffer(content, np.uint8)


@given(
    base=st.binary(max_size=9),
    sent=st.lists(st.binary(max_size=20), min_size=1, max_size=7),
    order=st.randoms(use_true_random=False),
    part_bytes=st.sampled_from([1, 1 << 20]),
)
def test_the_model_is_the_base_and_all_updates_by_their_slots(
    base: bytes, sent: list[bytes], order: random.Random, part_bytes: int
) -> None:
    received: list[tuple[Contribution, Tensors]] = [
        (
            Contribution(slot, f"p-{slot}", slot + 1),
            {"trees": as_bytes(one), "bias": np.array([slot], np.float32)},
        )
        for slot, one in enumerate(sent)
    ]
    order.shuffle(received)
    model, _state = aggregate(
        create_strategy("bagging", {"free": ["trees"]}),
        {"trees": as_bytes(base), "bias": np.zeros(1, np.float32)},
        None,
        received,
        part_bytes=part_bytes,
    )
    assert model["trees"].dtype == np.uint8
    assert model["trees"].tobytes() == base + b"".join(sent)
    count = len(sent)
    assert model["bias"].item() == pytest.approx(
        sum(slot * (slot + 1) for slot in range(count)) / (count * (count + 1) / 2), rel=1e-6
    )


def test_what_is_no_vector_of_bytes_is_refused_by_name() -> None:
    strategy = create_strategy("bagging", {"free": ["trees"]})
    base: Tensors = {"trees": as_bytes(b"")}
    for wrong, text in (
        (np.zeros((2, 2), np.uint8), r"has shape \[2, 2\]; of any length, it is still a vector"),
        (np.zeros(2), "is float64; what is collected is opaque bytes"),
    ):
        with pytest.raises(UpdateError, match=f"'p-0'.*'trees'.*{text}"):
            aggregate(strategy, base, None, [(Contribution(0, "p-0", 1), {"trees": wrong})])
    with pytest.raises(TensorError, match="is float64; what is collected is opaque bytes"):
        aggregate(
            strategy, {"trees": np.zeros(0)}, None, [(Contribution(0, "p-0", 1), {"trees": as_bytes(b"a")})]
        )


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"compression": "int8"}, "update.compression: bagging sends bytes of any length"),
        ({"kind": "delta"}, "update.kind: bagging sends bytes, which are no difference"),
    ],
)
def test_what_would_change_bytes_is_refused(update: dict[str, str], text: str) -> None:
    fields = {"program": "r/p:v1", "rounds": 1, "strategy": {"name": "bagging", "free": ["trees"]}}
    with pytest.raises(InvalidError, match=text):
        check_strategy(ExperimentSpec.decode({**fields, "update": update}))
    check_strategy(ExperimentSpec.decode({**fields, "update": {"compression": "zstd"}}))
