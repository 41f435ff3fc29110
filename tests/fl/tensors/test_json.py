"""Tensors as JSON: what is read is written back; what is not tensors is refused by name."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.tensors import (
    JSON,
    Array,
    Specs,
    TensorError,
    Tensors,
    TensorSpec,
    check_shapes,
    check_tensors,
    decode,
    encode,
    from_json,
    shapes_of,
    to_json,
)
from propeller.protocol.wire import decode_object

names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8).filter(
    lambda name: name not in {"version", "__metadata__"}
)
arrays = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=3),
    elements=st.floats(allow_nan=False, allow_infinity=False),
)
models = st.dictionaries(names, arrays, min_size=1, max_size=4)
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def same(one: Array, other: Array) -> bool:
    """Bit for bit, -0.0 included."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


@given(models)
def test_every_float_comes_back_exactly_and_in_order(model: Tensors) -> None:
    for again in (from_json(to_json(model)), decode(JSON, encode(model)[1])[0]):
        assert list(again) == list(model)
        assert all(same(again[name], array) for name, array in model.items())


@given(st.dictionaries(st.text(max_size=3), anything, max_size=3))
def test_whatever_is_sent_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        model = from_json(value)
    except TensorError:
        return
    check_tensors(model)


@given(st.binary(max_size=40))
def test_whatever_bytes_are_sent_are_read_or_refused(body: bytes) -> None:
    try:
        decode(JSON, body)
    except TensorError:
        return


def test_the_form_of_absmach_propeller() -> None:
    model = from_json({"w": [0, 0.0, -1], "b": 2, "version": None})
    assert list(model) == ["w", "b"]
    assert model["w"].dtype == np.float64
    assert model["b"].shape == ()
    assert encode(model) == (JSON, b'{"w":[0,0,-1],"b":2}')
    assert to_json(model) == {"w": [0.0, 0.0, -1.0], "b": 2.0}
    assert encode(from_json({"w": [[0.5, 1]], "b": -0.0}))[1] == b'{"w":[[0.5,1.0]],"b":-0.0}'
    assert encode(from_json({"b": 1e300}))[1] == b'{"b":1e+300}'


def test_a_float32_keeps_its_value_not_its_type() -> None:
    third = np.array([1 / 3], np.float32)
    assert decode(JSON, encode({"w": third})[1])[0]["w"][0] == float(third[0])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null"),
        ("1", "text"),
        ({"x": 1}, "an object"),
        ([1, None], "null"),
        ([1, True], "boolean"),
        ([1, "2"], "text"),
        ([[1], 2], "ragged"),
        ([[1, 2], [3]], "ragged.* 1, 2"),
        ([[[1], [2]], [[1], [2, 3]]], "ragged"),
        (math.nan, "finite"),
        ([1, math.inf], "finite"),
        (10**400, "too large"),
        ([[[10**400]]], "too large"),
    ],
)
def test_what_is_not_numbers_is_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(TensorError, match=f"tensor 'layer.w'.*{reason}") as caught:
        from_json({"b": 1.0, "layer.w": value})
    assert caught.value.tensor == "layer.w"


@pytest.mark.parametrize("name", ["", "a\nb", "\ud800", "x" * 513, "__metadata__"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(TensorError, match="name"):
        from_json({name: 1})


def test_lists_may_be_32_deep_and_no_deeper() -> None:
    value: Any = 1.0
    for _ in range(32):
        value = [value]
    assert from_json({"w": value})["w"].shape == (1,) * 32
    with pytest.raises(TensorError, match=r"'w'.*deeper than 32"):
        from_json({"w": [value]})
    with pytest.raises(TensorError, match="Invalid JSON"):
        decode(JSON, b'{"w":' + b"[" * 100_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"3",
        b"\xff\xfe",
        b'{"w":NaN}',
        b'{"w":-Infinity}',
        b'{"w":1e999}',
        b"{}",
        b'{"version":1}',
    ],
)
def test_bodies_that_are_not_models(body: bytes) -> None:
    with pytest.raises(TensorError):
        decode(JSON, body)


def test_an_update_fits_in_any_order_and_type_and_not_otherwise() -> None:
    base: Tensors = {"w": np.zeros((2, 3)), "b": np.zeros(())}
    check_shapes({"b": np.array(1, np.float32), "w": np.ones((2, 3), np.float32)}, shapes_of(base))
    for update, reason in (
        ({"w": np.zeros((2, 3))}, r"tensor 'b': is missing.*\[\]"),
        ({**base, "c": np.zeros(1)}, "tensor 'c': is not in the base model"),
        ({**base, "w": np.zeros((3, 2))}, r"tensor 'w': has shape \[3, 2\], the base model has \[2, 3\]"),
        ({**base, "b": np.zeros(1)}, r"tensor 'b': has shape \[1\], the base model has \[\]"),
    ):
        with pytest.raises(TensorError, match=reason):
            check_shapes(update, shapes_of(base))


def test_json_of_large_integers_is_json() -> None:
    assert json.loads(encode({"n": np.array([2**62, -5], np.int64)})[1]) == {"n": [2**62, -5]}


def test_integers_are_exact_where_the_base_model_has_them() -> None:
    base: Specs = {
        "steps": TensorSpec("I64", (2,)),
        "seen": TensorSpec("U64", ()),
        "small": TensorSpec("I8", (2,)),
        "w": TensorSpec("F32", (2,)),
    }
    sent = decode_object(
        b'{"steps":[1152921504606846977,-2],"seen":18446744073709551615,"small":[1,2.0],"w":[1,2]}'
    )
    read = from_json(sent, base)
    assert {name: str(array.dtype) for name, array in read.items()} == {
        "steps": "int64",
        "seen": "uint64",
        "small": "int64",
        "w": "float64",
    }
    assert read["steps"].tolist() == [2**60 + 1, -2]
    assert read["seen"].item() == 2**64 - 1
    assert from_json({"steps": [2**60 + 1, 0]})["steps"].dtype == np.float64  # nobody says what it is
    assert from_json({"steps": [0.5, 2]}, base)["steps"].tolist() == [0.5, 2.0]


@pytest.mark.parametrize("value", [[2**64, 0], [-(2**63) - 1, 0], [-1, 2**63]])
def test_integers_of_more_than_64_bits_are_refused(value: list[int]) -> None:
    with pytest.raises(TensorError, match=r"'n'.*64 bits"):
        from_json({"n": value}, {"n": TensorSpec("I64", (2,))})


def test_true_and_false_are_bool_and_nothing_else() -> None:
    read = from_json({"mask": [[True, False]], "flag": True})
    assert read["mask"].dtype == np.bool_
    assert read["flag"].shape == ()
    assert decode(JSON, encode(read)[1])[0]["mask"].tolist() == [[True, False]]
    assert from_json({"mask": [1, 0]}, {"mask": TensorSpec("BOOL", (2,))})["mask"].tolist() == [1, 0]
    with pytest.raises(TensorError, match=r"'w'.*true and false.*F32"):
        from_json({"w": [True]}, {"w": TensorSpec("F32", (1,))})


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_tensors_have_the_base_models_shape(shape: tuple[int, ...]) -> None:
    written = json.loads(encode({"x": np.empty(shape, np.float32)})[1])
    read = from_json(written, {"x": TensorSpec("F32", shape)})["x"]
    assert (read.shape, str(read.dtype)) == (shape, "float32")
    assert from_json(written)["x"].shape == shape[: shape.index(0) + 1]
