"""What stays on devices: Ditto's model of their own, and personal tensors with any strategy."""

from typing import Any

import numpy as np
import pytest

from propeller.fl.strategies import Contribution, ParameterError, UpdateError, aggregate, create_strategy
from propeller.fl.tensors import Tensors
from support.strategies import one_round

BASE: Tensors = {"head.w": np.zeros(2), "bn.mean": np.array([7.0]), "bn.count": np.array(3)}


def test_ditto_is_fedavg_and_tells_devices_lambda() -> None:
    strategy = create_strategy("ditto", {"lambda": 0.4})
    assert one_round(strategy, [9], [[1], [5]], samples=[1, 3])[0] == [4]
    assert strategy.for_devices({}) == {"name": "ditto", "lambda": 0.4}
    assert strategy.needs_device_state


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fedbn", {}),
        ("fedper", {}),
        ("fedadam", {"tau": 1.0}),
        ("fedmedian", {}),
        ("scaffold", {}),
        ("krum", {"byzantine": 0}),
    ],
)
def test_personal_tensors_are_not_in_updates_and_the_model_keeps_its_own(
    name: str, parameters: dict[str, Any]
) -> None:
    strategy = create_strategy(name, {**parameters, "personal": ["bn.*"]})
    assert strategy.for_devices({})["personal"] == ["bn.*"]
    assert strategy.needs_device_state
    extra: Tensors = {"@control/head.w": np.zeros(2)} if name == "scaffold" else {}
    received = [
        (Contribution(slot, f"p-{slot}", 1), {"head.w": np.array([4.0, 6.0]), **extra}) for slot in range(3)
    ]
    model, state = aggregate(strategy, BASE, None, received)
    assert list(model) == list(BASE)
    assert model["bn.mean"].tolist() == [7.0]
    assert model["bn.count"] == 3
    assert np.all(model["head.w"] > 0)
    assert not [tensor for tensor in state.tensors if "bn" in tensor]


def test_a_personal_tensor_in_an_update_is_refused() -> None:
    strategy = create_strategy("fedbn", {"personal": "bn.*"})
    with pytest.raises(UpdateError, match=r"'p-0'.*'bn.mean'"):
        aggregate(strategy, BASE, None, [(Contribution(0, "p-0", 1), BASE)])


def test_fedbn_needs_to_know_which() -> None:
    with pytest.raises(ParameterError, match=r"strategy.personal: fedbn needs it"):
        create_strategy("fedbn")
    with pytest.raises(ParameterError, match=r"strategy.personal"):
        create_strategy("fedbn", {"personal": []})
