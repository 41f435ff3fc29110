"""Long lists of JSON objects, read in pieces: the same items, wherever a piece ends."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.protocol import long_lists
from propeller.protocol.long_lists import NoSuchListError, find_list, read_items
from propeller.protocol.wire import NonFiniteNumberError

ITEMS = st.recursive(
    st.integers() | st.text(max_size=6) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from('ab],}"'), inner, max_size=3),
    max_leaves=12,
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_lists, "_PIECE", 12)


@pytest.mark.usefixtures("short")
@given(
    st.lists(st.dictionaries(st.sampled_from("xy]"), ITEMS, max_size=3)) | st.lists(st.lists(st.integers())),
    st.dictionaries(st.sampled_from(["a", "b"]), ITEMS),
    st.sampled_from([None, 1]),
)
def test_the_items_and_what_is_around_them(
    items: list[Any], others: dict[str, Any], indent: int | None
) -> None:
    text = json.dumps({"a": 1, **others, "data": items, "c": {"data": [0]}}, indent=indent).encode()
    begin = find_list(text, "data")
    parts = list(read_items(text, "data", begin))
    assert [item for part, _end in parts for item in part] == items
    assert json.loads(text[:begin] + text[parts[-1][1] :]) == {
        "a": 1,
        **others,
        "data": [],
        "c": {"data": [0]},
    }


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"data":1}', b'{"a":{"data":[1]}}', b'["data",[1]]', b'{"data']
)
def test_no_such_list(text: bytes) -> None:
    with pytest.raises(NoSuchListError):
        find_list(text, "data")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("items", [b'{"x":1},{"x":', b'{"x":1}{"x":2}]', b"[1,2],[3", b'{"x":NaN}]', b"1,]"])
def test_what_is_no_list(items: bytes) -> None:
    with pytest.raises(NoSuchListError):
        list(read_items(items, "data", 0))


@pytest.mark.usefixtures("short")
def test_a_number_that_is_too_large_is_found_by_its_place() -> None:
    with pytest.raises(NonFiniteNumberError, match=r"data\[3\]\.x\[1\]: a number is too large"):
        list(read_items(b'{"x":[1,1]},' * 3 + b'{"x":[1,1e999]}]', "data", 0))
