"""JSON objects in: whatever arrives is read or refused by ``MalformedMessageError``, never by another exception."""

import json
import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.proplet import HeartbeatMessage, PropletMetrics, Registration, TaskMetrics
from propeller.protocol.rounds import Experiment, RoundNext, RoundStart
from propeller.protocol.task import FlEnvelope, TaskResult, TaskStart, TaskStop, encode_json
from propeller.protocol.updates import UpdateMessage
from propeller.protocol.wire import (
    MAX_VALUES,
    MalformedMessageError,
    Message,
    Time,
    TooManyValuesError,
    decode_object,
    decode_trusted,
    read_count,
)

MESSAGES: list[type[Message]] = [
    HeartbeatMessage, Registration, PropletMetrics, TaskMetrics, ProgramChunk, ProgramRequest, ResolvedProgram, Experiment, RoundNext, RoundStart,
    UpdateMessage, FlEnvelope, TaskResult, TaskStart, TaskStop,
]  # fmt: skip
FIELDS = sorted({name for message in MESSAGES for name in message.model_fields})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TIME: TypeAdapter[datetime] = TypeAdapter(Time)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b'{"a":1,}', "Invalid JSON"),
        (b'{"a":1} x', "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"a":"\xff"}', "Invalid JSON"),
        ('{"a":1}'.encode("utf-16"), "Invalid JSON"),
        ('{"a":"\ud800"}', "Invalid JSON"),
        (b'{"a":"\\ud800"}', "Invalid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "Invalid JSON"),
        (b'{"a":' + b"[" * 100_000, "Invalid JSON"),
        (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "Invalid JSON"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "Invalid JSON"),
        (b'{"a":NaN}', "a: NaN is not a finite number; NaN and infinities are not JSON numbers"),
        (b'{"a":[1, Infinity]}', r"a\[1\]: Infinity is not a finite number"),
        (b'{"a":-Infinity}', "a: -Infinity is not"),
        (b'{"name":1e999}', "name: a number is too large"),
        (b'{"name":{"b":[[-1e999],"x"]}}', r"name\.b\[0\]\[0\]: a number is too large"),
        (b'{"w":[1,2,"x",3e400]}', r"w\[3\]: a number is too large"),
        (b"[]", "expected an object, got list"),
        (b"null", "expected an object, got NoneType"),
        (b'"text"', "expected an object, got str"),
        (b"12", "expected an object, got int"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_reason(payload: bytes | str, says: str) -> None:
    for decode in (decode_object, TaskResult.decode):
        with pytest.raises(MalformedMessageError, match=says):
            decode(payload)


@given(st.dictionaries(st.text(), JSON))
def test_any_json_object_is_read_as_the_standard_library_reads_it(value: dict[str, Any]) -> None:
    assert decode_object(json.dumps(value)) == value
    assert decode_object(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_read_exactly(number: float) -> None:
    read = decode_object(f'{{"a":{number!r}}}')["a"]
    assert read == number
    assert math.copysign(1, read) == math.copysign(1, number)


def test_integers_beyond_a_float_are_still_integers() -> None:
    assert decode_object(b'{"a":[%d, 1.5]}' % 10**400) == {"a": [10**400, 1.5]}


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    for message in MESSAGES:
        with pytest.raises(MalformedMessageError):
            message.decode(payload)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["p", "r-1", 1, 0, [], ["p"], {}])))
def test_any_fields_are_read_or_refused_and_what_was_read_can_be_written(fields: dict[str, Any]) -> None:
    for message in MESSAGES:
        try:
            read = message.decode(json.dumps(fields))
        except MalformedMessageError as error:
            assert any(name in str(error) for name in [*message.model_fields, "body"])  # noqa: PT017
        else:
            assert message.decode(read.encode()) == read


@pytest.mark.parametrize("message", MESSAGES)
def test_missing_fields_are_all_named(message: type[Message]) -> None:
    required = [name for name, field in message.model_fields.items() if field.is_required()]
    with pytest.raises(MalformedMessageError) as error:
        message.decode(b"{}")
    assert all(f"{name}: Field required" in str(error.value) for name in required)


def test_a_flood_of_errors_makes_a_short_text() -> None:
    with pytest.raises(MalformedMessageError, match="and 991 more") as error:
        RoundStart.decode({"round_id": "r", "task_wasm_image": "i", "participants": ["../x"] * 1000})
    assert len(str(error.value)) < 2000


def test_unknown_fields_are_ignored() -> None:
    assert TaskStop.decode(b'{"id":"t","new":{"x":[1]}}') == TaskStop(id="t")
    given = {"round_id": "r", "k_of_n": 2, "kofn": 2, "timeout": 5, "z": 1}
    assert RoundStart.unknown_fields(given) == ["kofn", "timeout (did you mean 'timeout_s'?)", "z"]


def test_a_message_is_never_made_with_a_number_that_is_none() -> None:
    with pytest.raises(ValidationError, match="cpu_metrics"):
        PropletMetrics.model_validate({"proplet_id": "p", "cpu_metrics": {"percent": math.nan}})
    with pytest.raises(ValueError, match="Out of range"):
        encode_json({"a": math.nan})


MOMENTS = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))


@given(MOMENTS.filter(lambda moment: 1 < moment.year < 9999))
def test_times_round_trip(moment: datetime) -> None:
    assert TIME.validate_json(TIME.dump_json(moment)) == moment


@given(st.integers(0, 253402300799), st.integers(0, 999_999_999))
def test_rust_times_are_read_to_the_microsecond(seconds: int, nanos: int) -> None:
    moment = TIME.validate_python({"secs_since_epoch": seconds, "nanos_since_epoch": nanos})
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=nanos // 1000)
    assert moment == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-01-21T16:12:11Z", "2026-01-21T16:12:11.000000Z"),
        ("2026-01-21T16:12:11.123456789Z", "2026-01-21T16:12:11.123456Z"),
        ("2026-01-21T16:12:11.5+02:00", "2026-01-21T14:12:11.500000Z"),
        ("2026-01-21T16:12:11", "2026-01-21T16:12:11.000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_rfc_3339_in_every_form(text: str, written: str) -> None:
    assert TIME.dump_python(TIME.validate_python(text)) == written


@pytest.mark.parametrize(
    "value",
    ["yesterday", "", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", {}, [], True, 1e300, 10**400,
     {"secs_since_epoch": "x"}, {"secs_since_epoch": None}, {"secs_since_epoch": 10**30},
     {"secs_since_epoch": 1, "nanos_since_epoch": {}}, {"secs_since_epoch": math.inf}],
)  # fmt: skip
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        TIME.validate_python(value)


def test_what_a_service_asked_for_may_have_any_number_of_values() -> None:
    text = '{"a":[' + ",".join(["[]"] * (MAX_VALUES + 1)) + "]}"
    assert len(decode_trusted(text)["a"]) == MAX_VALUES + 1
    with pytest.raises(TooManyValuesError):
        decode_object(text)


@given(st.text(max_size=12))
def test_a_count_is_digits_and_nothing_else(text: str) -> None:
    expected = int(text) if re.fullmatch("[0-9]{1,6}", text) else None
    assert read_count(text, 6) == expected


def test_what_python_takes_for_digits_is_no_count() -> None:
    for text in ("", "²", "१", "-1", "+1", " 1", "1_0", "1234567"):
        assert read_count(text, 6) is None
    assert read_count("0012", 6) == 12
