"""FedProx: its mean, what devices are told, and the adaptive weight of section 5.3.2."""

import pytest

from propeller.fl.strategies import ServerState, StrategyInputError, create_strategy
from support.strategies import one_round


def test_it_is_a_mean_and_devices_are_told_mu() -> None:
    strategy = create_strategy("fedprox", {"mu": 0.5})
    w, state = one_round(strategy, [9, 9], [[1, 2], [5, 10]], samples=[1, 3])
    assert w == [4, 8]
    assert strategy.for_devices(state.values) == {"name": "fedprox", "mu": 0.5}


def test_adaptive_mu_rises_with_the_loss_and_falls_after_five_falls() -> None:
    strategy = create_strategy("fedprox", {"mu": 0.2, "adaptive": True})
    state: ServerState | None = None
    told = [strategy.for_devices({})["mu"]]
    # Two of three samples have a loss that is 0.3 higher than the other's: the mean is loss + 0.2.
    for loss in [1.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.9, 0.8, 2.0]:
        metrics = [{"loss": loss}, {"loss": loss + 0.3}]
        _, state = one_round(strategy, [0], [[1], [1]], samples=[1, 2], state=state, metrics=metrics)
        assert state.values["loss"] == pytest.approx(loss + 0.2)
        told.append(strategy.for_devices(state.values)["mu"])
    # Before the first round, after it, after the rise, … after the fifth fall, … after the last rise.
    assert told == [0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.3]


def test_adaptive_mu_is_never_below_zero() -> None:
    strategy = create_strategy("fedprox", {"mu": 0.05, "adaptive": True})
    values = {"mu": 0.05, "loss": 1.0, "falls": 4}
    _, state = one_round(strategy, [0], [[1]], state=ServerState({}, values), metrics=[{"loss": 0.5}])
    assert state.values == {"mu": 0.0, "loss": 0.5, "falls": 0}


def test_adaptive_mu_needs_a_loss() -> None:
    strategy = create_strategy("fedprox", {"adaptive": True, "metric": "validation_loss"})
    with pytest.raises(StrategyInputError, match=r"'p-0'.*'validation_loss'.*are: loss.*metrics="):
        one_round(strategy, [0], [[1]], metrics=[{"loss": 0.5}])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"x": 1}, "mu: Field required"),
        ({"mu": "a", "loss": None, "falls": 0}, "mu: "),
        ({"mu": -1.0}, "mu: "),
    ],
)
def test_a_server_state_of_something_else_is_refused(values: dict[str, object], named: str) -> None:
    strategy = create_strategy("fedprox", {"adaptive": True})
    with pytest.raises(StrategyInputError, match=f"server state of fedprox: {named}"):
        one_round(strategy, [0], [[1]], state=ServerState({}, values), metrics=[{"loss": 0.5}])
