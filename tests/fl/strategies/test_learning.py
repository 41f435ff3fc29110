"""Every strategy learns the digits (logistic regression, ten devices), and robust ones learn them beside devices that send noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits

from propeller.fl.strategies import Contribution, ServerState, Strategy, aggregate, create_strategy
from propeller.fl.tensors import Tensors
from support.strategies import learning_strategies

Numbers = npt.NDArray[np.float64]

ROUNDS, STEPS, LR = 12, 10, 0.5
PARAMETERS: dict[str, dict[str, Any]] = {
    "qfedavg": {"q": 0.1, "lr": LR},
    "fedbn": {"personal": ["b"]},
    "fedper": {"personal": ["b"]},
}


def digits() -> tuple[Numbers, Numbers, Numbers, npt.NDArray[np.int64]]:
    """Pixels and one-hot digits to train on, pixels and digits to test with; in an order that mixes both."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels, digit = found.data[order] / 16, found.target[order]
    return pixels[360:], np.eye(10)[digit[360:]], pixels[:360], digit[:360]


TRAIN, LABELS, TEST, TEST_LABELS = digits()


def probabilities(model: Tensors, pixels: Numbers) -> Numbers:
    scores = pixels @ model["w"] + model["b"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Numbers = powers / powers.sum(axis=1, keepdims=True)
    return result


def loss(model: Tensors, pixels: Numbers, labels: Numbers) -> float:
    return float(-np.log((probabilities(model, pixels) * labels).sum(axis=1) + 1e-12).mean())


def accuracy(model: Tensors) -> float:
    return float((probabilities(model, TEST).argmax(axis=1) == TEST_LABELS).mean())


class Device:
    """What a device does in a round, with the device's part of FedProx and SCAFFOLD."""

    def __init__(self, slot: int, count: int) -> None:
        self.slot = slot
        # Devices have different numbers of samples.
        edges = (np.linspace(0, 1, count + 1) ** 1.2 * len(TRAIN)).astype(int)
        part = slice(edges[slot], edges[slot + 1])
        self.pixels, self.labels = TRAIN[part], LABELS[part]
        self.control: Tensors = {}
        self.own: Tensors = {}

    def train(
        self, strategy: Strategy, base: Tensors, state: ServerState | None
    ) -> tuple[Contribution, Tensors]:
        told = strategy.for_devices(state.values if state else {})
        model = {name: self.own.get(name, array).astype(np.float64) for name, array in base.items()}
        shift = {name: np.zeros(array.shape) for name, array in base.items()}
        if told.get("control"):
            for name in shift:
                server = state.tensors[f"control/{name}"] if state else 0.0
                shift[name] = server - self.control.get(name, np.zeros(()))
        before = loss(model, self.pixels, self.labels)
        steps = STEPS + self.slot % 3
        for _ in range(steps):
            error = (probabilities(model, self.pixels) - self.labels) / len(self.pixels)
            gradients = {"w": self.pixels.T @ error, "b": error.sum(axis=0)}
            for name, gradient in gradients.items():
                pull = told.get("mu", 0.0) * (model[name] - base[name])
                model[name] = model[name] - LR * (gradient + pull + shift[name])
        update: Tensors = {name: array.astype(np.float32) for name, array in model.items()}
        if told.get("control"):
            for name in base:
                change = (base[name] - model[name]) / (steps * LR) - shift[name]
                update[f"@control/{name}"] = change - self.control.get(name, np.zeros(()))
                self.control[name] = change
        for name in base:
            if strategy.is_personal(name):
                self.own[name] = update.pop(name)
        metrics = {"loss_before": before, "loss": loss(model, self.pixels, self.labels)}
        return Contribution(self.slot, f"p-{self.slot}", len(self.pixels), steps, metrics), update


def learn(
    strategy: Strategy,
    count: int = 10,
    spoil: Callable[[int, Tensors], Tensors] = lambda _slot, update: update,
) -> float:
    """The accuracy on digits that no device has, after all rounds."""
    devices = [Device(slot, count) for slot in range(count)]
    model: Tensors = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}
    state: ServerState | None = None
    for _ in range(ROUNDS):
        trained = [device.train(strategy, model, state) for device in devices]
        received = [(one, spoil(one.slot, update)) for one, update in trained]
        model, state = aggregate(strategy, model, state, received)
    return accuracy(model)


@pytest.mark.parametrize("name", learning_strategies())
def test_it_learns(name: str) -> None:
    assert learn(create_strategy(name, PARAMETERS.get(name))) > 0.85


def noise(seed: int) -> Callable[[int, Tensors], Tensors]:
    rng = np.random.default_rng(seed)

    def spoil(slot: int, update: Tensors) -> Tensors:
        if slot not in {2, 5, 7}:
            return update
        return {name: rng.normal(0, 10, array.shape).astype(np.float32) for name, array in update.items()}

    return spoil


def test_three_of_ten_devices_that_send_noise_spoil_a_mean() -> None:
    assert learn(create_strategy("fedavg"), spoil=noise(0)) < 0.6


@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [
        ("fedmedian", {}, 10),
        ("trimmed_mean", {"beta": 0.3}, 10),
        ("geometric_median", {}, 10),
        ("krum", {"byzantine": 3}, 10),
        ("multi_krum", {"byzantine": 3}, 10),
        ("norm_clipping", {}, 10),
        ("bulyan", {"byzantine": 3}, 15),
    ],
)
def test_robust_strategies_learn_beside_three_devices_that_send_noise(
    name: str, parameters: dict[str, Any], count: int
) -> None:
    assert learn(create_strategy(name, parameters), count, noise(0)) > 0.85
