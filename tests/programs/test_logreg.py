"""The logistic regression, in C and in Go: what it computes, what it prints, and what it refuses."""

import json
import math
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.data import program_path
from propeller.protocol.updates import UpdateMessage
from propeller.wasm.sandbox import Sandbox
from support import go_program
from support.logreg import Logreg

PROGRAMS = Path(__file__).parents[2] / "programs"
MODEL: dict[str, Any] = {"w": [0, 0, 0], "b": 0}
DATASET: dict[str, Any] = {
    "schema": "fl-demo-dataset-v1",
    "proplet_id": "p1",
    "data": [{"x": [i % 7 / 7, -i / 64, 0.5], "y": int(i % 7 > 3)} for i in range(64)],
    "size": 64,
}


def log_loss(model: dict[str, Any], dataset: dict[str, Any]) -> float:
    """The mean log loss, by numpy."""
    x = np.array([row["x"] for row in dataset["data"]])
    y = np.array([row["y"] for row in dataset["data"]])
    z = x @ np.array(model["w"]) + model["b"]
    return float(np.mean(np.logaddexp(0, z) - y * z))


async def test_update(logreg: Logreg) -> None:
    """One document that the coordinator takes, and honest numbers in it."""
    document = await logreg.update(MODEL, DATASET, {"epochs": 5, "lr": 0.5, "batch_size": 8})
    update = UpdateMessage.model_validate(document)
    assert (update.round_id, update.proplet_id) == ("r1", "p1")
    assert (update.base_model_uri, update.num_samples) == ("fl/models/global_model_v0", 64)
    fields = {"round_id", "proplet_id", "base_model_uri", "num_samples", "metrics", "steps", "update"}
    assert (set(document), update.steps) == (fields, 5 * 64 // 8)
    metrics = update.metrics
    assert metrics["loss_before"] == pytest.approx(math.log(2), abs=1e-15)
    assert metrics["loss"] == pytest.approx(log_loss(document["update"], DATASET), abs=1e-14)
    assert metrics["loss"] < metrics["loss_before"]
    assert metrics["accuracy"] > metrics["accuracy_before"]


async def test_full_batch_step_is_gradient_descent(logreg: Logreg) -> None:
    """Against numpy: two steps on all samples, with weight decay on w alone."""
    model: dict[str, Any] = {"w": [0.3, -0.2, 1.0], "b": 0.1}
    document = await logreg.update(model, DATASET, {"epochs": 2, "lr": 0.3, "batch_size": 0, "l2": 0.1})
    x = np.array([row["x"] for row in DATASET["data"]])
    y = np.array([row["y"] for row in DATASET["data"]])
    w, b = np.array(model["w"]), float(model["b"])
    for _ in range(2):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        w, b = w - 0.3 * (x.T @ error / len(y) + 0.1 * w), b - 0.3 * error.mean()
    assert document["update"]["w"] == pytest.approx(w.tolist(), abs=1e-14)
    assert document["update"]["b"] == pytest.approx(b, abs=1e-14)


async def test_deterministic(logreg: Logreg) -> None:
    """The same to the last bit for the same seed and base model, whatever the ids; another order for another."""
    hyperparams = {"epochs": 2, "lr": 0.5, "batch_size": 4, "seed": 7}
    first = await logreg(MODEL, DATASET, hyperparams)
    assert (await logreg(MODEL, DATASET, hyperparams)).stdout == first.stdout
    assert (await logreg(MODEL, DATASET, hyperparams, by_env=True)).stdout == first.stdout
    # A variable is taken before the file.
    both = await logreg("not read", DATASET, hyperparams, MODEL_DATA=json.dumps(MODEL))
    assert both.stdout == first.stdout
    update = json.loads(first.stdout)["update"]
    for same in ({"ROUND_ID": "r2"}, {"PROPLET_ID": "p2"}):
        assert (await logreg.update(MODEL, DATASET, hyperparams, **same))["update"] == update
    other_seed = await logreg.update(MODEL, DATASET, {**hyperparams, "seed": 8})
    other_base = await logreg.update(MODEL, DATASET, hyperparams, MODEL_URI="fl/models/global_model_v1")
    assert other_seed["update"] != update
    assert other_base["update"] not in (update, other_seed["update"])


async def test_the_languages_agree(compiled: Path) -> None:
    """The order of samples is the same too; ``exp`` of the two libraries may differ in the last bit."""
    hyperparams = {"epochs": 3, "lr": 0.5, "batch_size": 5, "l2": 0.01, "seed": -7}
    async with Sandbox(compiled) as sandbox:
        c, go = [
            await Logreg(sandbox, program).update(MODEL, DATASET, hyperparams)
            for program in (program_path("logreg"), go_program.build())
        ]
    assert go.keys() == c.keys()
    assert go["update"]["w"] == pytest.approx(c["update"]["w"], abs=1e-12)
    assert go["update"]["b"] == pytest.approx(c["update"]["b"], abs=1e-12)
    assert go["metrics"] == pytest.approx(c["metrics"], abs=1e-12)


async def test_log(logreg: Logreg) -> None:
    """The lines that the guide looks for; a sample only where it is asked for."""
    await logreg.update(MODEL, DATASET)
    assert "DEBUG: Initial model - w: [0.000000, 0.000000, 0.000000], b: 0.000000" in logreg.log
    assert not any("sample - " in line for line in logreg.log)
    await logreg.update(MODEL, DATASET, {"log_samples": 1})
    assert "Loaded dataset with 64 samples from Local Data Store" in logreg.log
    assert "DEBUG: Initial model - w: [0.000000, 0.000000, 0.000000], b: 0.000000" in logreg.log
    assert "DEBUG: First sample - x: [0.000000, 0.000000, 0.500000], y: 0" in logreg.log
    assert any(line.startswith("DEBUG: Final model after training - w: [0.0") for line in logreg.log)
    assert any(line.startswith('DEBUG: Update payload: {"w":[0.0') for line in logreg.log)


async def test_evaluate(logreg: Logreg) -> None:
    """Metrics without training, and no update."""
    model = {"w": [5, 0, 0], "b": -2.9, "version": 3}
    document = await logreg.update(model, DATASET, FL_MODE="evaluate")
    assert "update" not in document
    assert document["num_samples"] == 64
    assert document["metrics"]["loss"] == pytest.approx(log_loss(model, DATASET), abs=1e-14)
    assert 0 < document["metrics"]["accuracy"] <= 1


async def test_large_logits(logreg: Logreg) -> None:
    """Neither overflow nor a loss of infinity where the model is sure."""
    dataset = {"data": [{"x": [1e4], "y": 1}, {"x": [-1e4], "y": 1}]}
    document = await logreg.update({"w": [1], "b": 0}, dataset, FL_MODE="evaluate")
    assert document["metrics"]["loss"] == pytest.approx(5000)


async def test_numbers_are_read_and_written_exactly(logreg: Logreg) -> None:
    """Every double comes back bit for bit, however it is written; samples of zeros leave w as it was."""
    rng = random.Random(1)
    values = [struct.unpack("d", rng.randbytes(8))[0] for _ in range(3000)]
    values += [rng.uniform(-1, 1) * 10.0 ** rng.randint(-30, 30) for _ in range(3000)]
    values += [rng.gauss(0, 1) for _ in range(3000)] + [0.1, 5e-324, 1.7976931348623157e308, 2.0**53 + 2]
    values = [value for value in values if math.isfinite(value)]
    forms = ["{!r}", "{:.17g}", "{:.20e}", "{:.16E}", "{:.40g}"]
    texts = [rng.choice(forms).format(value) for value in values]
    texts += [
        "9007199254740993",
        "9007199254740993.0000000000000000000000001",
        "1e-400",
        "123456789012345678901234567890",
    ]
    texts += ["0.000000000000000000000000000000001e33", "1.00000000000000011102230246251565404"]
    model = f'{{"w": [{", ".join(texts)}], "b": 0}}'
    dataset = {"data": [{"x": [0] * len(texts), "y": 1}]}
    document = await logreg.update(model, dataset, {"lr": 0.1})
    # Go writes a large double without a point or an exponent, which Python reads as an integer.
    assert [float(value) for value in document["update"]["w"]] == [float(text) for text in texts]


@pytest.mark.parametrize("by_env", [False, True])
async def test_bad_input(logreg: Logreg, by_env: bool) -> None:
    """Exit 1 and one line that says what is wrong, nothing on standard output."""
    row = {"x": [1, 2, 3], "y": 1}
    for model, dataset, hyperparams, text in (
        (None, DATASET, None, "no model"),
        (MODEL, None, None, "no dataset"),
        ("", DATASET, None, "model" if not by_env else "no model"),
        ("{", DATASET, None, "not valid JSON"),
        ('{"w": [1, 2, 3], "b": 0} x', DATASET, None, "nothing more is expected"),
        ('{"w": [1, 2, 3,], "b": 0}', DATASET, None, "a number (w) is expected"),
        ('{"w": [1, NaN, 3], "b": 0}', DATASET, None, "a number (w) is expected"),
        ('{"w": [1, 1e999, 3], "b": 0}', DATASET, None, "too large for a double"),
        ('{"w": [1, 01, 3], "b": 0}', DATASET, None, "no leading zero"),
        ('{"w": [1, "2", 3], "b": 0}', DATASET, None, "a number (w) is expected"),
        ('{"w": [1' + "0" * 1000 + '], "b": 0}', DATASET, None, "a shorter number"),
        ({"w": [1, 2], "b": 0}, DATASET, None, "x of sample 0 has 3 numbers; w of the model has 2"),
        ({"w": [], "b": 0}, DATASET, None, "w is empty"),
        ({"w": [1, 2, 3]}, DATASET, None, "it must be"),
        ({"w": [[1, 2, 3]], "b": 0}, DATASET, None, "a number (w) is expected"),
        ({**MODEL, "v": [1]}, DATASET, None, 'the model has "v"'),
        (MODEL, {"data": []}, None, "it has no samples"),
        (MODEL, {"rows": [row]}, None, "dataset: it must be"),
        (MODEL, {"data": [row, {"x": [1, 2], "y": 0}]}, None, "x of sample 1 has 2 numbers"),
        (MODEL, {"data": [{"x": [1, 2, 3]}]}, None, "sample 0 has no y"),
        (MODEL, {"data": [{"x": [1, 2, 3], "y": 2}]}, None, "labels are 0 or 1"),
        (MODEL, {"data": [{"x": [1, None, 3], "y": 1}]}, None, "a number (x) is expected"),
        (MODEL, '{"a": ' + "[" * 100 + "]" * 100 + "}", None, "less nesting"),
        (MODEL, DATASET, {"lr": 0}, "lr is 0"),
        (MODEL, DATASET, {"lr": "fast"}, "a number (lr) is expected"),
        (MODEL, DATASET, {"epochs": 0.5}, "epochs is 0.5"),
        (MODEL, DATASET, {"batch_size": -1}, "batch_size is -1"),
        (MODEL, DATASET, {"l2": -1}, "l2 is -1"),
        ({"w": [1, 2, 3], "b": 0}, DATASET, {"lr": 1e200, "l2": 1e200}, "not finite; use a smaller lr"),
    ):
        outcome = await logreg(model, dataset, hyperparams, by_env=by_env)
        assert (outcome.exit_code, outcome.stdout) == (1, b""), text
        assert outcome.error == "the program exited with code 1"
        assert logreg.log[-1].startswith("error: "), logreg.log
        assert text in logreg.log[-1], logreg.log


async def test_bad_environment(logreg: Logreg) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ROUND_ID": ""}, "ROUND_ID is not set"),
        ({"PROPLET_ID": ""}, "PROPLET_ID is not set"),
        ({"FL_MODE": "guess"}, "FL_MODE is guess"),
    ]
    for env, text in cases:
        outcome = await logreg(MODEL, DATASET, **env)
        assert (outcome.exit_code, outcome.stdout) == (1, b"")
        assert text in logreg.log[-1]


async def test_strings_are_escaped(logreg: Logreg) -> None:
    document = await logreg.update(MODEL, DATASET, MODEL_URI='a"b\\c\td\u00fc')
    assert document["base_model_uri"] == 'a"b\\c\td\u00fc'


async def test_hyperparams_may_be_null(logreg: Logreg) -> None:
    defaults = await logreg(MODEL, DATASET)
    assert (await logreg(MODEL, DATASET, "null")).stdout == defaults.stdout
    given = {"epochs": 1, "lr": 0.01, "batch_size": 16, "l2": 0, "seed": 0, "other": {"a": [1, {}, []]}}
    assert (await logreg(MODEL, DATASET, given)).stdout == defaults.stdout
    assert logreg.log[0].startswith("warning: hyperparameter 'other' is not known")


async def test_much_data(logreg: Logreg) -> None:
    """More text than the program's memory holds at once would need; 20,000 times 50 numbers of 17 digits."""
    row = ",".join(repr(random.Random(n).random()) for n in range(50))
    dataset = '{"data":[' + ",".join(f'{{"x":[{row}],"y":{n % 2}}}' for n in range(20_000)) + "]}"
    outcome = await logreg({"w": [0] * 50, "b": 0}, dataset)
    assert outcome.error is None, logreg.log
    assert outcome.metrics["memory_peak_bytes"] < 80_000_000


@pytest.mark.timeout(300)
def test_is_the_rebuild_of_its_source(tmp_path: Path) -> None:
    """The shipped file is what the compiler makes of the source in the repository, byte for byte."""
    pytest.importorskip("ziglang")
    sys.path.insert(0, str(PROGRAMS))
    try:
        from build import build_logreg  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(PROGRAMS))
    built = build_logreg(tmp_path).read_bytes()
    assert built == program_path("logreg").read_bytes(), "run: python programs/build.py"
    assert len(built) < 60_000
    assert b"/logreg_c" not in built
