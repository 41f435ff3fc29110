"""NaN and infinities: found in a text or in values, named by their path, and never written as null."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.protocol.finite import find_number, find_word, format_path, require_finite_numbers
from propeller.protocol.rounds import Experiment, RoundStart
from propeller.protocol.updates import UpdateHeader, read_update_fields
from propeller.protocol.wire import MalformedMessageError, NonFiniteNumberError, decode_object

PLAIN = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
WORDS = [
    "nan",
    "-nan",
    "inf",
    "-inf",
    "NaN",
    "Infinity",
    "-Infinity",
    "+Inf",
    "-nan(ind)",
    "1.#INF",
    "nan(0x8000)",
]


@pytest.mark.parametrize("word", WORDS)
def test_every_spelling_is_found_by_its_path(word: str) -> None:
    text = f'{{"a":"nan, [nan","b":{{"c, d":[1,{{"e":2}},{word} , 3]}}}}'
    assert find_word(text) == (["b", "c, d", 2], word)
    with pytest.raises(NonFiniteNumberError, match=r"b\.c, d\[2\]"):
        decode_object(text)


@pytest.mark.parametrize(
    "text", ['{"a":"nan"}', '{"a":nano}', '{"nan":1', "]nan", "{", "", '{"a":"\\"nan"', "[1,"]
)
def test_other_faults_are_not_taken_for_one(text: str) -> None:
    assert find_word(text) is None


@given(st.text(st.sampled_from('{}[]",:\\ nainf1.#'), max_size=30))
def test_no_text_breaks_the_search(text: str) -> None:
    find_word(text)


@given(PLAIN)
def test_values_are_finite_or_named(value: Any) -> None:
    infinite = "inf" in json.dumps(value, allow_nan=True).lower().replace('"', " ").split() or (
        "Infinity" in json.dumps(value)
    )
    found = find_number(value)
    if found is None:
        assert require_finite_numbers(value) is value
        return
    assert infinite
    for step in found:
        value = value[step]
    assert math.isinf(value)


def test_paths() -> None:
    assert format_path(["data", 3, "x", 0]) == "data[3].x[0]"
    assert format_path([]) == "body"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"metrics":{"loss":-nan}}',
            "metrics: 'loss' is nan; a metric is one finite number: training diverged",
        ),
        (
            '{"metrics":{"loss":-inf}}',
            "metrics: 'loss' is -inf; a metric is one finite number: training diverged",
        ),
        (
            '{"metrics":{"loss":1e999}}',
            "metrics: 'loss' is inf; a metric is one finite number: training diverged",
        ),
        (
            '{"update":{"w":[1,inf]}}',
            r"update\.w\[1\] is inf; every number must be finite: training diverged",
        ),
        ('{"update":{"w":[1,}}', "Invalid JSON"),
    ],
)
def test_an_update_with_one_says_what_it_means(text: str, says: str) -> None:
    with pytest.raises(MalformedMessageError, match=says):
        read_update_fields(text)


def test_the_same_text_for_every_encoding() -> None:
    texts = set()
    for read in (
        lambda: read_update_fields('{"metrics":{"loss":nan}}'),
        lambda: read_update_fields('{"loss":NaN}', ("metrics",)),
        lambda: UpdateHeader.decode(
            {"round_id": "r", "proplet_id": "p", "num_samples": 1, "metrics": {"loss": math.nan}}
        ),
    ):
        with pytest.raises(MalformedMessageError) as caught:
            read()
        texts.add(str(caught.value))
    assert len(texts) == 1


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_hyperparameters_are_finite_and_never_null(lost: float) -> None:
    fields = {"round_id": "r", "participants": ["p"], "hyperparams": {"a": 1, "layers": [{"lr": lost}]}}
    with pytest.raises(MalformedMessageError, match=r"hyperparams: layers\[0\]\.lr: must be a finite number"):
        Experiment.decode(fields)
    start = {**fields, "model_uri": "m", "task_wasm_image": "i"}
    with pytest.raises(MalformedMessageError, match="hyperparams"):
        RoundStart.decode(start)
    changed = Experiment.decode({**fields, "hyperparams": {}}).model_copy(
        update={"hyperparams": {"lr": lost}}
    )
    assert "null" not in json.dumps(changed.model_dump(mode="json")["hyperparams"])
    with pytest.raises(ValueError, match=r"hyperparams\.lr: must be a finite number"):
        changed.encode()
    assert b"NaN" in changed.model_copy(update={"hyperparams": {}, "experiment_id": "NaN"}).encode()


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"a": "0.5", "b": float("nan")}, "'b' is nan"),
        ({"": "text"}, "is no name of a metric"),
        ({"a": 10**400}, "'a' is beyond the range"),
        ({"": 1}, "name"),
        ({"a\n": 1}, "printable"),
        ({"x" * 129: 1}, "128"),
        (dict.fromkeys(map(str, range(1001)), 1), "1001 are more than the limit of 1000"),
        ([1], "object of finite numbers"),
    ],
)
def test_metrics_are_finite_numbers_by_name(metrics: Any, says: str) -> None:
    with pytest.raises(MalformedMessageError, match=f"metrics: .*{says}"):
        UpdateHeader.decode({"round_id": "r", "proplet_id": "p", "num_samples": 1, "metrics": metrics})


def test_metrics_stay_the_numbers_that_they_are() -> None:
    for metrics in (None, {}, {"loss": 0.5, "correct": 17}):
        header = UpdateHeader.decode(
            {"round_id": "r", "proplet_id": "p", "num_samples": 1, "metrics": metrics}
        )
        assert json.dumps(header.metrics) == json.dumps(metrics or {})
