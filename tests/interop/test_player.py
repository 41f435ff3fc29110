"""The player itself: what is not as written is found, and what is written stands for what it says."""

from typing import Any

import pytest

from support.exchange import mismatch


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"a": 1}, {}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": True}),
        ({"a": None}, {"a": 0}),
        ({"a": "<absent>"}, {"a": None}),
        ({"a": {"b": 1}}, {"a": None}),
        ([1, 2], [1]),
        ([1, 2], [1, 3]),
        ("<int>", 1.0),
        ("<int>", True),
        ("<text>", ""),
        ("<text>", None),
        ("<time>", "2026-01-21 16:12"),
        ("<time>", {"secs_since_epoch": 1}),
        ("<known>", "other"),
        ("task <known>", "task other"),
        ({"a": "<new>", "b": "<new>"}, {"a": 1, "b": 2}),
    ],
)
def test_what_is_not_as_written(wanted: Any, found: Any) -> None:
    assert mismatch(wanted, found, {"known": "value"}) is not None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"a": 1}, {"a": 1.0, "more": "is ignored"}),
        ({"a": "<absent>"}, {}),
        ({"a": "<any>"}, {"a": None}),
        ("<int>", 3),
        ("<time>", "2026-01-21T16:12:11.123456Z"),
        ("task <known>", "task value"),
        ({"a": "<new>", "b": "<new>"}, {"a": 1, "b": 1}),
    ],
)
def test_what_is_as_written(wanted: Any, found: Any) -> None:
    assert mismatch(wanted, found, {"known": "value"}) is None


def test_a_variable_keeps_what_it_first_met() -> None:
    variables: dict[str, Any] = {}
    assert mismatch({"id": "<task>"}, {"id": "t-1"}, variables) is None
    assert variables == {"task": "t-1"}
    assert mismatch("<task>", "t-2", variables) == "'t-2' is not <task>"
