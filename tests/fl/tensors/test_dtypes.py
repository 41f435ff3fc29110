"""The dtypes of a model: what changes no number in another one, and what does not fit."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.tensors import (
    DTYPES,
    TensorError,
    TensorSpec,
    bounds,
    check_ranges,
    is_floating,
    is_integer,
    name_of,
    specs_of,
    to_base_dtypes,
)
from propeller.fl.tensors.dtypes import all_finite, without_loss
from propeller.tensors.safetensors import ITEM_BYTES

edges = st.sampled_from(
    [0, 1, -1, 127, 128, 255, 256, 2**24 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
)
numbers = edges | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1)


def exact(array: Any) -> list[Fraction]:
    return [Fraction(number) for number in array.tolist()]


def test_all_types_of_the_format_are_there() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES
    for name, dtype in DTYPES.items():
        assert name_of(dtype) == name
        assert is_floating(dtype) + is_integer(dtype) + (name == "BOOL") == 1
    assert name_of(np.dtype(">f4")) == "F32"
    with pytest.raises(TensorError, match=r"complex128.*F64, F32"):
        name_of(np.dtype(complex))


@pytest.mark.parametrize("name", ["F16", "BF16", "F8_E4M3", "F8_E5M2", "F32", "F64"])
def test_finite_is_what_numpy_says_of_every_value(name: str) -> None:
    dtype = DTYPES[name]
    bits = np.arange(1 << 8 * min(dtype.itemsize, 2)).astype(f"u{min(dtype.itemsize, 2)}")
    values = bits.view(dtype) if dtype.itemsize < 4 else bits.view(np.float16).astype(dtype)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(values)
    for at in range(0, len(values), 1 if dtype.itemsize < 2 else 17):
        assert all_finite(values[at]) == all_finite(np.array([1, values[at], 0], dtype)) == good[at]
    assert all_finite(values[good])
    assert all_finite(values[good].reshape(2, -1).T)
    assert all_finite(np.zeros((0, 3), dtype))
    assert not any(all_finite(values[at]) for at in np.flatnonzero(~good)[:600])
    if dtype.kind == "f":
        assert not all_finite(np.array([1, -np.inf], dtype.newbyteorder(">")))
        assert all_finite(np.array([1, -2.5], dtype.newbyteorder(">")))


def test_bounds() -> None:
    assert bounds(DTYPES["U64"]) == (0, 2**64 - 1)
    assert bounds(DTYPES["F16"]) == (-65504.0, 65504.0)
    assert bounds(DTYPES["F8_E4M3"]) == (-448.0, 448.0)
    assert bounds(DTYPES["BOOL"]) == (0, 1)


@given(numbers, st.sampled_from(sorted(DTYPES)), st.sampled_from(sorted(DTYPES)))
def test_without_loss_is_exact_or_nothing(number: float, source: str, target: str) -> None:
    least, most = bounds(DTYPES[source])
    number = float(number) if is_floating(DTYPES[source]) else int(number)
    array = np.array([min(max(number, least), most), 0], object)
    array = array.astype(DTYPES[source] if source != "U64" else np.uint64)
    converted = without_loss(array, DTYPES[target])
    if converted is not None:
        assert converted.dtype == DTYPES[target]
        assert exact(converted) == exact(array)
    else:
        with np.errstate(all="ignore"):
            forced = array.astype(DTYPES[target]).tolist()
        assert not all(np.isfinite(forced)) or [Fraction(each) for each in forced] != exact(array)


def test_an_update_takes_the_base_models_dtypes_where_nothing_is_lost() -> None:
    base = {
        "half": TensorSpec("F16", (2,)),
        "third": TensorSpec("F32", (1,)),
        "steps": TensorSpec("I32", ()),
        "mean": TensorSpec("I32", ()),
        "mask": TensorSpec("BOOL", (2,)),
        "none": TensorSpec("BF16", (0,)),
    }
    update = {
        "mask": np.array([1, 0]),
        "mean": np.array(2.5),
        "steps": np.array(7.0),
        "third": np.array([1 / 3]),
        "half": np.array([0.5, -2]),
        "none": np.array([]),
    }
    converted = to_base_dtypes(update, base)
    assert list(converted) == list(base)
    assert {name: spec.dtype for name, spec in specs_of(converted).items()} == {
        "half": "F16",
        "third": "F64",
        "steps": "I32",
        "mean": "F64",
        "mask": "BOOL",
        "none": "BF16",
    }
    for name, array in update.items():
        assert converted[name].tolist() == array.tolist()


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("I8", np.array([1, 300]), r"holds 300, but the base model's I8 goes from -128 to 127"),
        ("U8", np.array([-1.0]), "holds -1"),
        ("BOOL", np.array([2]), "holds 2"),
        ("F16", np.array([1e6]), "holds 1e[+]06.*F16"),
        ("F8_E4M3", np.array([500.0]), "holds 500"),
        ("I64", np.array([2**63], np.uint64), r"holds 9\.22337e[+]18"),
    ],
)
def test_numbers_beyond_the_base_models_dtype_are_refused(dtype: str, value: Any, text: str) -> None:
    with pytest.raises(TensorError, match=f"tensor 'x': {text}"):
        check_ranges({"x": value}, {"x": TensorSpec(dtype, value.shape)})


@pytest.mark.parametrize(
    ("dtype", "value"), [("I8", [126.7]), ("F16", [65519.0]), ("BOOL", [0.25]), ("U64", [0.5]), ("I8", [])]
)
def test_numbers_that_round_into_the_base_models_dtype_fit(dtype: str, value: list[float]) -> None:
    check_ranges({"x": np.array(value)}, {"x": TensorSpec(dtype, (len(value),))})
