"""Long lists of numbers in JSON: the same numbers as without being cut out, and what is left where it is."""

import array
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from propeller.protocol import number_lists
from propeller.protocol.number_lists import NumberList, cut_number_lists, restore
from propeller.protocol.wire import MAX_VALUES, MalformedMessageError, TooManyValuesError, decode_tensors


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of any length, in pieces of a few bytes."""
    monkeypatch.setattr(number_lists, "_SHORTEST", 1)
    monkeypatch.setattr(number_lists, "_PIECE", 20)


def nested(values: "NumberList") -> Any:
    def cut(numbers: list[float], shape: tuple[int, ...]) -> Any:
        if not shape:
            return numbers[0]
        size = len(numbers) // shape[0]
        return [cut(numbers[at * size : (at + 1) * size], shape[1:]) for at in range(shape[0])]

    return cut(list(values.numbers), values.shape)


def plain(value: Any) -> Any:
    if isinstance(value, NumberList):
        return nested(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def decode(text: bytes) -> Any:
    left, lists = cut_number_lists(text)
    return plain(
        restore(
            from_json(left, allow_inf_nan=False), lambda text: lists[text].numbers if text in lists else text
        )
    )


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)
VALUES = st.recursive(
    NUMBERS | st.booleans() | st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)


@pytest.mark.usefixtures("short")
@given(st.dictionaries(st.text(max_size=5), VALUES), st.sampled_from([None, 1]), st.booleans())
def test_what_is_read_is_the_same(value: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="replace")
    assert decode(text) == from_json(text)


@pytest.mark.usefixtures("short")
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_lists_of_every_shape_are_cut_out(shape: list[int]) -> None:
    numbers = NumberList(tuple(shape), array.array("d", range(math.prod(shape))))
    text = json.dumps({"a": nested(numbers), "b": "x"}).encode()
    left, lists = cut_number_lists(text)
    assert b"[" not in left
    assert [one.numbers for one in lists.values()] == [numbers]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "value",
    [
        *(
            b"[[1,2],3[,4]]",
            b"[[1,]2,[3,4]]",
            b"[1 2]",
            b"[1,]",
            b"[,1]",
            b"[01]",
            b"[1,2",
            b"[NaN]",
            b"[1e999]",
            b"[-]",
        ),
        *(
            b"[[1,2],[3]]",
            b"[1,[2]]",
            b"[[1],2]",
            b"[]",
            b"[[],[]]",
            b"[true,1]",
            b"[null]",
            b"[9007199254740993]",
            b"[1][2]",
        ),
        *(b"[[1],[2]],[[3],[4]]", b"[" * 70 + b"1" + b"]" * 70, b"[\x0c1]"),
    ],
)
def test_what_is_none_stays_where_it_is(value: bytes) -> None:
    text = b'{"a":' + value + b"}"
    assert cut_number_lists(text) == (text, {})


@pytest.mark.usefixtures("short")
def test_a_mark_that_a_sender_writes_is_a_text() -> None:
    text = b'{"a":[1,2],"b":"00000000000000000","c":"\\"[1,2]"}'
    assert decode(text) == {"a": [1.0, 2.0], "b": "0" * 17, "c": '"[1,2]'}


def test_of_an_update_only_long_lists_may_have_many_numbers() -> None:
    numbers = ",".join(["0.5"] * (3 * MAX_VALUES))
    read = decode_tensors(f'{{"update":{{"w":[{numbers}],"b":1}}}}')
    assert read["update"]["w"].shape == (3 * MAX_VALUES,)
    assert read["update"]["b"] == 1
    for ragged in (f"[[{numbers}],[1]]", "[" + "[],[0]," * MAX_VALUES + "[]]"):
        with pytest.raises(TooManyValuesError, match="more than 100000 values"):
            decode_tensors(f'{{"update":{{"w":{ragged}}}}}')
    with pytest.raises(MalformedMessageError, match=r"update\.w\[1\]: NaN is not a finite number"):
        decode_tensors(f'{{"update":{{"w":[0.5,NaN,{numbers}]}}}}')


def test_where_no_tensors_are_lists_are_plain_and_few() -> None:
    text = json.dumps({"model": {"w": [1] * 50_000}, "lineage": {"a": [1, 2.5] * 100}, "b": "x"})
    read = decode_tensors(text, "model")
    assert read["lineage"] == {"a": [1, 2.5] * 100}
    assert type(read["lineage"]["a"][0]) is int
    assert read["model"]["w"].shape == (50_000,)
    with pytest.raises(TooManyValuesError):
        decode_tensors(json.dumps({"lineage": [1] * (MAX_VALUES + 1)}), "model")
