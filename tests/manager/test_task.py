"""Tasks as clients write and read them."""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import InvalidError
from propeller.manager.task import Task, TaskSpec, TaskState, decode_program, program_preview
from propeller.protocol.wire import MalformedMessageError

MOMENT = datetime(2026, 1, 21, 16, 12, 11, 250_000, tzinfo=UTC)


def test_a_new_task_has_every_field_that_is_always_there() -> None:
    task = Task("t-1", TaskSpec(name="add"), TaskState.PENDING, MOMENT)
    assert task.to_json() == {
        "id": "t-1",
        "name": "add",
        "kind": "standard",
        "state": 0,
        "cli_args": None,
        "daemon": False,
        "encrypted": False,
        "start_time": "0001-01-01T00:00:00Z",
        "finish_time": "0001-01-01T00:00:00Z",
        "created_at": "2026-01-21T16:12:11.250000Z",
        "updated_at": "0001-01-01T00:00:00Z",
    }


def test_numbers_stay_numbers_and_texts_stay_texts() -> None:
    spec = TaskSpec.decode({"name": "add", "inputs": [3, 2.5, "7"]})
    assert spec.inputs == [3, 2.5, "7"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": ""},
        {"name": None},
        {"name": 5},
        {"name": "x" * 257},
        {"name": "a", "kind": "cron"},
        {"name": "a", "inputs": [{"x": 1}]},
        {"name": "a", "inputs": [float("inf")]},
        {"name": "a", "inputs": "3"},
        {"name": "a", "env": {"A": 1}},
        {"name": "a", "env": ["A"]},
        {"name": "a", "cli_args": [1]},
        {"name": "a", "proplet_id": "../p"},
        {"name": "a", "proplet_id": "a/b"},
        {"name": "a", "mode": "dance"},
        {"name": "a", "daemon": "maybe"},
        {"name": "a", "monitoring_profile": []},
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessageError) as error:
        TaskSpec.decode(fields)
    assert str(error.value).startswith(list(fields)[-1] if fields else "name")


def test_what_go_clients_send_for_nothing_is_nothing() -> None:
    spec = TaskSpec.decode(
        {"name": "a", "kind": "", "proplet_id": "", "mode": "", "env": None, "cli_args": None, "inputs": None}
    )
    assert spec == TaskSpec(name="a")


@given(st.binary(max_size=64))
def test_a_preview_shows_both_ends_only(content: bytes) -> None:
    text, shown = base64.b64encode(content).decode(), program_preview(content)
    assert shown == text if len(text) <= 20 else shown == f"{text[:10]}<REDACTED>{text[-10:]}"


@pytest.mark.parametrize("text", ["no base64!", "AGFzbQ", base64.b64encode(b"ELF").decode(), 5, ["x"]])
def test_a_program_must_be_wasm_in_base64(text: Any) -> None:
    with pytest.raises(InvalidError, match="file"):
        decode_program(text)
