"""What holds of every strategy in the catalog."""

import numpy as np
import pytest

from propeller.fl.strategies import Contribution, UpdateError, aggregate, create_strategy, strategy_names
from propeller.fl.tensors import Tensors


@pytest.mark.parametrize("name", strategy_names())
def test_integers_and_truth_values_keep_their_dtype(name: str) -> None:
    base: Tensors = {
        "w": np.zeros(3, np.float32),
        "big": np.array([2**60 + 1]),
        "steps": np.array(2, np.int32),
        "mask": np.array([True, False]),
        "none": np.zeros((0, 2), np.float16),
    }
    changed = base | {"steps": np.array(5, np.int32), "mask": np.array([True, True])}
    received = [(Contribution(slot, f"p-{slot}", 1), changed if slot else base) for slot in range(3)]
    model, _state = aggregate(create_strategy(name), base, None, received)
    assert {key: array.dtype for key, array in model.items()} == {
        key: array.dtype for key, array in base.items()
    }
    assert model["big"].tolist() == [2**60 + 1]
    assert model["steps"] == 4
    assert model["mask"].tolist() == [True, True]
    assert model["none"].shape == (0, 2)


@pytest.mark.parametrize("name", strategy_names())
def test_nan_is_refused_by_name(name: str) -> None:
    received = [
        (Contribution(slot, f"p-{slot}", 1), {"w": np.full(4, np.nan if slot == 1 else 1.0)})
        for slot in range(3)
    ]
    with pytest.raises(UpdateError, match=r"'p-1'.*'w'") as caught:
        aggregate(create_strategy(name), {"w": np.zeros(4)}, None, received)
    assert caught.value.number == 1
