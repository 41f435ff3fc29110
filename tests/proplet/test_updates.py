"""What a program leaves becomes an update, or an error that names what is wrong."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.proplet.errors import TaskError
from propeller.proplet.large_files import FileBody
from propeller.proplet.updates import ProgramOutput, document_metadata, parse_program_output, with_metadata
from propeller.protocol.updates import UpdateHeader

ENV = {"ROUND_ID": "r-1", "MODEL_URI": "fl/models/global_model_v0"}
DOCUMENT = {
    "round_id": "r-1",
    "proplet_id": "me",
    "base_model_uri": ENV["MODEL_URI"],
    "num_samples": 64,
    "metrics": {"loss": 0.5},
    "update": {"w": [1.0], "b": 0.0},
}


def read(fields: dict[str, Any] | bytes, tensors: bytes | None = None, mode: str = "train") -> ProgramOutput:
    stdout = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return parse_program_output(stdout, tensors, {**ENV, "FL_MODE": mode}, "me")


def content(body: bytes | FileBody) -> bytes:
    assert isinstance(body, bytes)
    return body


def test_the_document_goes_as_it_is() -> None:
    stdout = json.dumps(DOCUMENT, indent=1).encode() + b"\n"
    update = read(stdout)
    assert update.body == stdout
    assert (update.header.num_samples, update.header.metrics) == (64, {"loss": 0.5})


def test_a_program_may_leave_the_base_model_to_the_proplet() -> None:
    update = read({**DOCUMENT, "base_model_uri": ""})
    assert json.loads(content(update.body)) == DOCUMENT


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
        ({"steps": 0}, "steps"),
        ({"steps": 1.0}, "steps"),
        ({"kind": "gradient"}, "kind"),
        ({"metrics": [0.5]}, "metrics"),
        ({"metrics": {"loss": 10**400}}, "metrics: 'loss' is beyond the range of float64"),
    ],
)
def test_a_wrong_document_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TaskError, match=named):
        read({**DOCUMENT, **change})


def test_metrics_that_are_no_numbers_are_left_out_and_told_of() -> None:
    """In tensors beside the document too, where the header's fields are texts."""
    metrics = {"loss": 0.5, "text": "low", "list": [0.5], "object": {"a": 1}, "null": None, "flag": True}
    kinds = {"text": "text", "list": "a list", "object": "an object", "null": "null", "flag": "true or false"}
    output = read({**DOCUMENT, "metrics": metrics})
    assert (output.header.metrics, output.header.metrics_left_out) == ({"loss": 0.5}, kinds)
    metadata = document_metadata(output.header)
    assert (json.loads(metadata["metrics"]), json.loads(metadata["metrics_left_out"])) == (
        {"loss": 0.5},
        kinds,
    )


@pytest.mark.parametrize(
    "stdout", [b"", b"hello", b"[]", b'{"a":1}{"b":2}', b'{"num_samples": NaN}', b"\xff\xfe"]
)
def test_what_is_not_one_document_is_refused(stdout: bytes) -> None:
    with pytest.raises(TaskError, match="standard output is not an update"):
        read(stdout)


EVALUATED = {name: value for name, value in DOCUMENT.items() if name != "update"}


def test_an_evaluation_has_no_update() -> None:
    stdout = json.dumps(EVALUATED).encode()
    evaluation = read(stdout, mode="evaluate")
    assert (evaluation.body, evaluation.media_type) == (stdout, "application/json")
    assert evaluation.header.metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("fields", "tensors"), [(DOCUMENT, None), ({**DOCUMENT, "update": {}}, None), (EVALUATED, b"x")]
)
def test_an_update_where_an_evaluation_was_asked_for_says_what_to_do(
    fields: dict[str, Any], tensors: bytes | None
) -> None:
    """As of programs in C and Go that do not look at FL_MODE."""
    with pytest.raises(TaskError, match=r"^update: the task only evaluates .* have it read FL_MODE"):
        read(fields, tensors, "evaluate")


def test_an_evaluation_without_metrics_is_refused() -> None:
    with pytest.raises(TaskError, match=r"^metrics: an evaluation has one or more"):
        read({**EVALUATED, "metrics": {}}, mode="evaluate")


def test_an_update_of_another_kind_than_the_experiment_wants_says_what_to_do() -> None:
    env = {**ENV, "FL_UPDATE": '{"kind": "delta"}'}
    stdout = json.dumps({**DOCUMENT, "kind": "delta"}).encode()
    assert parse_program_output(stdout, None, env, "me").header.kind == "delta"
    with pytest.raises(
        TaskError, match=r"kind: the experiment asks for updates of the kind 'delta' .* sent 'weights'"
    ):
        parse_program_output(json.dumps(DOCUMENT).encode(), None, env, "me")


def test_steps_and_kind_go_along_with_tensors_beside_the_document() -> None:
    tensors = to_safetensors({"w": np.ones(3, dtype=np.float32)})
    update = read({**EVALUATED, "steps": 12, "kind": "delta", "corrected": False}, tensors)
    _, metadata = from_safetensors(content(update.body))
    assert (metadata["steps"], metadata["kind"], metadata["corrected"]) == ("12", "delta", "false")
    assert UpdateHeader.decode({**metadata, "num_samples": 1, "steps": 12, "metrics": {}}).corrected is False


def test_tensors_beside_the_document_carry_its_header() -> None:
    tensors = to_safetensors({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(2)})  # type: ignore[dict-item]
    update = read({key: value for key, value in DOCUMENT.items() if key != "update"}, tensors)
    arrays, metadata = from_safetensors(content(update.body))
    assert arrays["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert metadata == {
        "round_id": "r-1",
        "proplet_id": "me",
        "base_model_uri": ENV["MODEL_URI"],
        "num_samples": "64",
        "metrics": '{"loss": 0.5}',
    }


names = st.text(min_size=1, max_size=20).filter(str.isprintable)


@given(st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False)))
def test_metadata_stays_readable_whatever_the_metrics(metrics: dict[str, float]) -> None:
    header = UpdateHeader(round_id="r", proplet_id="p", num_samples=1, metrics=metrics)
    body = with_metadata(to_safetensors({"w": np.ones(3, dtype=np.float32)}), header)
    arrays, metadata = from_safetensors(content(body))
    assert json.loads(metadata["metrics"]) == metrics
    assert arrays["w"].tolist() == [1, 1, 1]


@given(st.binary(max_size=64))
def test_what_is_no_safetensors_document_is_refused(garbage: bytes) -> None:
    header = UpdateHeader(round_id="r", proplet_id="p", num_samples=1)
    with pytest.raises(TaskError, match=r"update\.safetensors"):
        with_metadata(garbage, header)
    with tempfile.NamedTemporaryFile() as file:
        file.write(garbage)
        file.flush()
        with pytest.raises(TaskError, match=r"update\.safetensors"):
            with_metadata(Path(file.name), header)


async def test_a_file_is_sent_as_it_would_be_from_memory(tmp_path: Path) -> None:
    tensors = to_safetensors({"w": np.arange(2_000_000, dtype=np.float32)}, {"left": "out"})
    file = tmp_path / "update"
    file.write_bytes(tensors)
    header = UpdateHeader(round_id="r", proplet_id="p", num_samples=3, metrics={"loss": 0.5})
    body = with_metadata(file, header)
    assert isinstance(body, FileBody)
    sent = b"".join([piece async for piece in body.pieces()])
    assert (sent, body.length) == (with_metadata(tensors, header), len(sent))
