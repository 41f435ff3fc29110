"""SCAFFOLD: the server's lines of algorithm 1 by hand, and with devices that do option II."""

import numpy as np
import pytest

from propeller.fl.strategies import ServerState, StrategyInputError, UpdateError, create_strategy
from support.strategies import one_round


def test_the_servers_part_of_algorithm_1() -> None:
    # x = 0 + 0.5 · (2 + 4) / 2; c = 1 + 2/4 · (0.4 + 0.8) / 2.
    strategy = create_strategy("scaffold", {"server_lr": 0.5, "devices": 4})
    state = ServerState({"control/w": np.array([1.0])})
    w, after = one_round(strategy, [0], [[2], [4]], samples=[1, 100], state=state, control=[[0.4], [0.8]])
    assert w == [1.5]
    assert after.tensors["control/w"].tolist() == pytest.approx([1.3], rel=1e-15)
    assert strategy.for_devices({}) == {"name": "scaffold", "control": True, "tensors": ["control"]}


def test_it_reaches_the_optimum_that_drift_keeps_fedavg_from() -> None:
    """Two devices with losses ½x² and 9/2 (x - 1)²: the optimum of their sum is 0.9 (section 3 of the paper: client drift)."""
    curvature, optimum = np.array([1.0, 9.0]), np.array([0.0, 1.0])
    lr, steps = 0.1, 10
    scaffold, fedavg = create_strategy("scaffold"), create_strategy("fedavg")
    x, own, state = 0.0, np.zeros(2), None
    drifting = 0.0
    for _ in range(60):
        c = float(state.tensors["control/w"][0]) if state else 0.0
        y, z = np.full(2, x), np.full(2, drifting)
        for _step in range(steps):
            y -= lr * (curvature * (y - optimum) + c - own)
            z -= lr * curvature * (z - optimum)
        new = own - c + (x - y) / (steps * lr)
        (x,), state = one_round(
            scaffold, [x], [[value] for value in y], state=state, control=[[value] for value in new - own]
        )
        own = new
        # The server's control variate is the mean of the devices'.
        assert state.tensors["control/w"][0] == pytest.approx(own.mean(), abs=1e-12)
        (drifting,), _ = one_round(fedavg, [drifting], [[value] for value in z])
    assert x == pytest.approx(0.9, abs=1e-6)
    assert abs(drifting - 0.9) > 0.1


def test_what_it_needs() -> None:
    strategy = create_strategy("scaffold", {"devices": 1})
    assert strategy.needs_device_state
    with pytest.raises(StrategyInputError, match=r"strategy.devices is 1, but 2"):
        one_round(strategy, [0], [[2], [4]], control=[[0], [0]])
    with pytest.raises(UpdateError, match=r"'p-0'.*'@control/w'.*missing.*scaffold"):
        one_round(strategy, [0], [[2]])
