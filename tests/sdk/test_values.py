"""Models, data and hyperparameters as a person has them: NumPy in and out, and errors that name the field."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from propeller.errors import PropellerError
from propeller.fl.tensors import specs_of
from propeller.program import tensors as pt
from propeller.sdk import Experiment, Propeller, RoundResult
from propeller.sdk.values import decode_model, encode_model, plain
from support.fake_stack import FakeStack


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with FakeStack().running() as running:
        yield running


@pytest.fixture
def fl(stack: FakeStack) -> Iterator[Propeller]:
    with Propeller(**stack.urls()) as client:
        yield client


def test_a_model_keeps_its_dtypes_and_can_be_changed(fl: Propeller) -> None:
    model = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "half": np.ones(2, ml_dtypes.bfloat16),
        "steps": np.int64(2**60 + 1),
        "mask": np.array([True, False]),
        "none": np.zeros((0, 3)),
        "lists": [[1, 2], [3, np.float32(0.5)]],
        "flags": (True, False),
        "b": 0,
        "array": pt.array([1.0, 2.0]),
    }
    read = fl.model(fl.put_model(model))
    assert {name: spec.dtype for name, spec in specs_of(read).items()} == {
        "w": "F32",
        "half": "BF16",
        "steps": "I64",
        "mask": "BOOL",
        "none": "F64",
        "lists": "F64",
        "flags": "BOOL",
        "b": "F64",
        "array": "F32",
    }
    assert read["steps"].item() == 2**60 + 1
    np.testing.assert_array_equal(read["w"], model["w"])
    assert read["lists"].tolist() == [[1, 2], [3, 0.5]]
    read["w"] += 1
    assert read["none"].shape == (0, 3)


def test_data_and_hyperparameters_are_sent_exactly(stack: FakeStack, fl: Propeller) -> None:
    rows = np.array([[0.1, 2], [3, 4]], np.float32)
    samples = [
        {"x": row, "y": label, "name": np.str_("a")}
        for row, label in zip(rows, np.array([1, 0]), strict=True)
    ]
    mine = MappingProxyType({"schema": "mine", "data": samples, "size": np.uint8(2)})
    assert fl.put_dataset("calm-otter-41", mine) == "id-1"
    assert stack.datasets["id-1"] == {
        "schema": "mine",
        "data": [{"x": rows[0].tolist(), "y": 1, "name": "a"}, {"x": [3.0, 4.0], "y": 0, "name": "a"}],
        "size": 2,
    }


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda fl: fl.put_model({"w": [math.nan]}), "tensor 'w': holds NaN or an infinity"),
        (lambda fl: fl.put_model({"w": np.array([np.inf])}), "tensor 'w': holds NaN or an infinity"),
        (lambda fl: fl.put_model({"a": 1, "w": np.array(["x"])}), "tensor 'w': .*no dtype of a model"),
        (lambda fl: fl.put_model({"w": np.array([1j])}), "tensor 'w': complex128 is no dtype of a model"),
        (lambda fl: fl.put_model({"w": np.array([None])}), "tensor 'w': object is no dtype"),
        (lambda fl: fl.put_model({"w": "text"}), "tensor 'w': must hold numbers"),
        (lambda fl: fl.put_model({"w": [[1], [1, 2]]}), "tensor 'w': is ragged"),
        (lambda fl: fl.put_model({"w": {1, 2}}), r"model\.w: set cannot be sent"),
        (lambda fl: fl.put_model({1: 2}), "model: the name of a tensor must be text"),
        (lambda fl: fl.put_model({}), "model: there are no tensors"),
        (lambda fl: fl.put_model([1]), "model: list is no mapping"),
        (lambda fl: fl.put_dataset("d", {"data": [{"x": [math.nan]}]}), r"data\[0\]\.x\[0\]: must be a finite number, not NaN"),
        (lambda fl: fl.put_dataset("d", {"data": [{"x": 1}, {"x": np.float32("inf")}]}), r"data\[1\]\.x: must be a finite number, not NaN"),
        (lambda fl: fl.put_dataset("d", {"data": [{"x": np.datetime64("2026-01-01")}]}), r"data\[0\]\.x: date cannot"),
        (lambda fl: fl.put_dataset("d", {"data": [{"x": b"raw"}]}), r"data\[0\]\.x: bytes cannot be sent"),
        (lambda fl: fl.put_dataset("d", {"data": {1: 2}}), "data: 1 is no name"),
        (lambda fl: fl.put_dataset("d", [1]), "dataset: list is no data set"),
        (lambda fl: fl.put_dataset("no/id", {"data": []}), "is not a valid id"),
        (lambda _: Experiment(program="p", rounds=9, hyperparams={"lr": {"schedule": "step", "values": {1: 1, "1": 2}}}), r"hyperparams\.lr\.values: a round has two"),
        (lambda fl: fl.start_round("i", base_version=0, hyperparams={"lr": math.nan}), r"hyperparams\.lr: must be a finite number, not NaN"),
        (lambda fl: fl.start_round("i", base_version=0, hyperparams={"a": [{"b": -math.inf}]}), r"hyperparams\.a\[0\]\.b"),
        (lambda fl: fl.start_round("i", base_version=0, timeout_s=math.nan), "timeout_s: must be a finite number, not NaN"),
        (lambda fl: fl.start_round("i", base_version=0, limits={"wall_time_s": math.inf}), r"limits\.wall_time_s"),
        (lambda _: Experiment(program="p", rounds=1, hyperparams={"lr": np.float32("nan")}), r"hyperparams\.lr: must be a finite number, not NaN"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_named(fl: Propeller, act: Callable[[Propeller], Any], text: str) -> None:
    with pytest.raises(PropellerError, match=text):
        act(fl)


def test_plain_values_of_every_class() -> None:
    class Mine(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return {"a": np.float64(0.5), "b": range(2)}[name]

        def __iter__(self) -> Iterator[str]:
            return iter("ab")

        def __len__(self) -> int:
            return 2

    value = plain(
        {"mine": Mine(), "t": (np.bool_(True), None, "x"), "n": np.array(3), "p": pt.array([1, 2])}, "value"
    )
    assert (
        json.dumps(value) == '{"mine": {"a": 0.5, "b": [0, 1]}, "t": [true, null, "x"], "n": 3, "p": [1, 2]}'
    )


def test_a_model_is_decoded_as_it_was_encoded() -> None:
    model = {"w": np.float16(0.1), "n": np.array([1, 2], np.uint16)}
    again = decode_model(encode_model(model))
    assert specs_of(again) == {"w": ("F16", ()), "n": ("U16", (2,))}
    assert again["w"] == model["w"]


def test_the_mean_of_a_metric_passes_over_what_is_no_number() -> None:
    metrics: list[dict[str, Any]] = [
        {"loss": 1.0},
        {"loss": "bad"},
        {"loss": None},
        {"loss": [2]},
        {},
        {"loss": 2},
    ]
    result = RoundResult("r", 1, [{"num_samples": 3, "metrics": one} for one in metrics], 0.1)
    assert result.mean("loss") == 1.5
    assert result.mean("accuracy") is None
