"""What a program leaves becomes an update, or an error that names what is wrong."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.proplet.errors import TaskError
from propeller.proplet.updates import TrainedUpdate, parse_program_output, with_metadata
from propeller.protocol.rounds import UpdateHeader

ENV = {"ROUND_ID": "r-1", "MODEL_URI": "fl/models/global_model_v0"}
DOCUMENT = {
    "round_id": "r-1",
    "proplet_id": "me",
    "base_model_uri": ENV["MODEL_URI"],
    "num_samples": 64,
    "metrics": {"loss": 0.5},
    "update": {"w": [1.0], "b": 0.0},
}


def read(fields: dict[str, Any] | bytes, tensors: bytes | None = None) -> TrainedUpdate:
    stdout = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return parse_program_output(stdout, tensors, ENV, "me")


def test_the_document_goes_as_it_is() -> None:
    stdout = json.dumps(DOCUMENT, indent=1).encode() + b"\n"
    update = read(stdout)
    assert update.body == stdout
    assert (update.header.num_samples, update.header.metrics) == (64, {"loss": 0.5})


def test_a_program_may_leave_the_base_model_to_the_proplet() -> None:
    update = read({**DOCUMENT, "base_model_uri": ""})
    assert json.loads(update.body) == DOCUMENT


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"round_id": "r-2"}, "round_id 'r-2'"),
        ({"proplet_id": "other"}, "proplet_id 'other'"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": "64"}, "num_samples"),
        ({"num_samples": 1.5}, "num_samples"),
        ({"update": {}}, "update data is required"),
        ({"update": None}, "update"),
    ],
)
def test_a_wrong_document_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TaskError, match=named):
        read({**DOCUMENT, **change})


@pytest.mark.parametrize(
    "stdout", [b"", b"hello", b"[]", b'{"a":1}{"b":2}', b'{"num_samples": NaN}', b"\xff\xfe"]
)
def test_what_is_not_one_document_is_refused(stdout: bytes) -> None:
    with pytest.raises(TaskError, match="standard output is not an update"):
        read(stdout)


def test_tensors_beside_the_document_carry_its_header() -> None:
    tensors = to_safetensors({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(2)})  # type: ignore[dict-item]
    update = read({key: value for key, value in DOCUMENT.items() if key != "update"}, tensors)
    arrays, metadata = from_safetensors(update.body)
    assert arrays["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert metadata == {
        "round_id": "r-1",
        "proplet_id": "me",
        "base_model_uri": ENV["MODEL_URI"],
        "num_samples": "64",
        "metrics": '{"loss": 0.5}',
    }


@given(st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False)))
def test_metadata_stays_readable_whatever_the_metrics(metrics: dict[str, float]) -> None:
    header = UpdateHeader(round_id="r", proplet_id="p", num_samples=1, metrics=metrics)
    body = with_metadata(to_safetensors({"w": np.ones(3, dtype=np.float32)}), header)
    arrays, metadata = from_safetensors(body)
    assert json.loads(metadata["metrics"]) == metrics
    assert arrays["w"].tolist() == [1, 1, 1]


@given(st.binary(max_size=64))
def test_what_is_no_safetensors_document_is_refused(garbage: bytes) -> None:
    header = UpdateHeader(round_id="r", proplet_id="p", num_samples=1)
    with pytest.raises(TaskError, match=r"update\.safetensors"):
        with_metadata(garbage, header)
