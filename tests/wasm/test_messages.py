"""What the processes of a sandbox tell each other, and what a hostile one could."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.wasm.messages import (
    BoundedFolder,
    CompiledProgram,
    CompileTask,
    KillTask,
    MessageError,
    RunTask,
    StartTask,
    TaskEnded,
    TaskNotStarted,
    TaskReport,
    TemplateReady,
    decode_reply,
    decode_report,
    decode_request,
    decode_task,
    encode,
)
from propeller.wasm.program_run import Limits

COMPILE = CompileTask("/s", "/t", component=True, fuel=False, max_bytes=5, limits=Limits(fuel=7))
RUN = RunTask(
    "/f",
    CompiledProgram("/a", component=False, fuel=True),
    host_tensors=True,
    env={"A": "ü\n"},
    args=("-x",),
    export=None,
    inputs=("1", "2"),
    limits=Limits(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def report_of(**fields: Any) -> bytes:
    """A report with some of its fields replaced."""
    return json.dumps({"message": "TaskReport", **vars(TaskReport()), **fields}).encode()


def test_messages_come_out_as_they_went_in() -> None:
    for request in (
        StartTask(
            1, "/task", 2.5, 9, 8, module="some.module", outputs=(BoundedFolder("out", "/out", 10, 3),)
        ),
        StartTask(2, "/task", 60, 9, 8, program=CompiledProgram("/a", component=True, fuel=False)),
        KillTask(3),
    ):
        assert decode_request(encode(request)) == request
    for reply in (
        TemplateReady(("rlimits", "seccomp")),
        TaskEnded(1, -9, "wall_time_s", 0.25, 1024),
        TaskNotStarted(2, "no"),
    ):
        assert decode_reply(encode(reply)) == reply
    for task in (COMPILE, RUN):
        assert decode_task(encode(task)) == task
    report = TaskReport("e", "fuel", 3, "v", True, 1.5, 2.5, 4, 5, 0.5, 6)
    assert decode_report(encode(report)) == report
    assert b"\n" not in encode(RUN)[:-1]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"[" * 60_000,
        b"[1]",
        b"null",
        b"{}",
        b'{"message": "KillTask"}',
        b'{"message": "KillTask", "id": null}',
        b'{"message": "KillTask", "id": true}',
        b'{"message": "KillTask", "id": 1.0}',
        b'{"message": "KillTask", "id": 1, "more": 2}',
        b'{"message": ["KillTask"], "id": 1}',
        encode(TaskNotStarted(1, "a reply")),
        encode(StartTask(1, "/task", float("inf"), 9, 8)),
        encode(StartTask(1, "/task", float("nan"), 9, 8)),
        encode(StartTask(1, "/task", 1, 9, 8)).replace(b'"outputs": []', b'"outputs": [{"folder": "/"}]'),
        encode(StartTask(1, "/task", 1, 9, 8)).replace(b'"/task"', b'["/task"]'),
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(MessageError):
        decode_request(line)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"env": {"A": "\\u00fc\\n"}', b'"env": {"A": 1}'),
        (b'"args": ["-x"]', b'"args": "-x"'),
        (b'"args": ["-x"]', b'"args": [1]'),
        (b'"fuel": null', b'"fuel": "all"'),
        (b'"wall_time_s": 300.0', b'"wall_time_s": "300"'),
    ],
)
def test_tasks_are_checked_to_their_last_field(old: bytes, new: bytes) -> None:
    line = encode(RUN)
    assert old in line
    with pytest.raises(MessageError):
        decode_task(line.replace(old, new))


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_is_no_reply_and_no_report(line: bytes) -> None:
    assert decode_report(line) is None
    with pytest.raises(MessageError):
        decode_reply(line)


@given(st.sampled_from(list(vars(TaskReport()))), JSON)
def test_a_report_with_anything_in_a_field_is_that_or_none(name: str, value: Any) -> None:
    report = decode_report(report_of(**{name: value}))
    assert report is None or vars(report)[name] == value


@pytest.mark.parametrize("text", ["", "[" * 60_000, "[1]", "{", "{}", "null", "\xff", '{"error": null}'])
def test_a_broken_report_is_none(text: str) -> None:
    assert decode_report(text.encode("latin-1")) is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "1e999", "9" * 400, "true", '"5"', "[]"])
@pytest.mark.parametrize("name", ["cpu_s", "run_s", "fuel", "memory_peak_bytes"])
def test_figures_are_finite_numbers(name: str, value: str) -> None:
    assert decode_report(report_of(**{name: 12321}).replace(b"12321", value.encode())) is None
    report = decode_report(report_of(**{name: 2}))
    assert report is not None
    assert vars(report)[name] == 2


@pytest.mark.parametrize("name", ["error", "limit", "value"])
def test_texts_are_unicode(name: str) -> None:
    assert decode_report(report_of(**{name: "\ud800"})) is None
    report = decode_report(report_of(**{name: "\U0001f98a"}))
    assert report is not None
    assert vars(report)[name] == "\U0001f98a"
