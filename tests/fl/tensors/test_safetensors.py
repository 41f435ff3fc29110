"""Our safetensors against the format's own library, and against malformed documents."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as library
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError

from propeller.fl.compression.description import read_description
from propeller.fl.tensors import (
    DTYPES,
    JSON,
    TensorError,
    Tensors,
    decode,
    encode,
    from_safetensors,
    to_safetensors,
)
from propeller.fl.tensors.safetensors import read_header
from propeller.tensors.limits import MAX_TENSORS
from propeller.tensors.safetensors import write_header

TYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?"]

arrays = st.sampled_from(TYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
        elements={"allow_nan": False, "allow_infinity": False} if "f" in dtype else None,
    )
)
names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8).filter(
    lambda name: name not in {"version", "__metadata__"}
)
models = st.dictionaries(names, arrays, min_size=1, max_size=5)
texts = st.text(st.characters(codec="utf-8"), max_size=10)


def document(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@given(models, st.dictionaries(texts, texts, max_size=3))
def test_what_is_written_is_read_by_us_in_order_and_by_the_library(
    model: Tensors, metadata: dict[str, str]
) -> None:
    content = to_safetensors(model, metadata)
    tensors, told = from_safetensors(content)
    assert list(tensors) == list(model)
    assert same(tensors, model)
    assert told == metadata
    assert same(library.load(content), model)


@given(models)
def test_what_the_library_writes_is_read(model: Tensors) -> None:
    assert same(from_safetensors(library.save(model))[0], model)


@given(models, st.data())
def test_documents_with_changed_bytes_are_read_or_refused(model: Tensors, data: st.DataObject) -> None:
    content = bytearray(to_safetensors(model))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(st.integers(0, 255))
    try:
        from_safetensors(content)
    except TensorError:
        return
    # What we take, the format's own library takes too: we are never the laxer one.
    library.load(bytes(content))


@given(st.binary(max_size=64))
def test_whatever_bytes_are_sent_are_refused(content: bytes) -> None:
    with pytest.raises(TensorError):
        from_safetensors(content)


@given(models, st.integers(0, 400))
def test_a_document_that_is_cut_off_is_refused(model: Tensors, kept: int) -> None:
    content = to_safetensors(model)
    if kept < len(content):
        with pytest.raises(TensorError):
            from_safetensors(content[:kept])
        with pytest.raises((SafetensorError, ValueError)):
            library.load(content[:kept])


def test_arrays_of_any_layout_are_written_and_reading_copies_nothing() -> None:
    model = {"t": np.arange(6.0).reshape(2, 3).T, "s": np.arange(10.0)[::3], "big": np.array([1.5, 2], ">f4")}
    content = bytearray(to_safetensors(model))
    tensors = from_safetensors(content)[0]
    for name, array in model.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert np.shares_memory(tensors[name], np.frombuffer(content, np.uint8))
        assert tensors[name].flags.aligned


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("BF16", [1.0, -2.5, 3.140625, 2.0**100]),
        ("F8_E4M3", [1.0, -2.5, 448, 0.5]),
        ("F8_E5M2", [1, -2.5, 57344, 0]),
    ],
)
def test_the_floats_that_numpy_lacks_keep_their_type(name: str, values: list[float]) -> None:
    model = {"w": np.array(values, DTYPES[name]).reshape(2, 2), "x": np.array([1.0, 2], "<f4")}
    content = to_safetensors(model)
    entries = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert (entries["w"]["dtype"], entries["x"]["dtype"]) == (name, "F32")
    assert entries["x"]["data_offsets"][0] == 0  # the wider type first
    assert same(from_safetensors(content)[0], model)
    assert decode(JSON, encode(model)[1])[0]["w"].tolist() == model["w"].tolist() == [values[:2], values[2:]]


def test_bfloat16_is_read_as_its_bits_say_and_must_be_finite() -> None:
    bits = np.array([0x3F80, 0xC020], "<u2").tobytes()
    assert from_safetensors(document({"w": entry("BF16", (2,))}, bits))[0]["w"].tolist() == [1.0, -2.5]
    for infinite in (b"\x80\x7f", b"\xc0\x7f"):
        with pytest.raises(TensorError, match=r"'w'.*finite"):
            from_safetensors(document({"w": entry("BF16", (1,), (0, 2))}, infinite))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "first 8 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "first 8 bytes"),
        ((17 * 1024 * 1024).to_bytes(8, "little"), "first 8 bytes"),
        ((100).to_bytes(8, "little") + b"{}", "cut off"),
        (document(b"not json"), "not JSON"),
        (document(b"[" * 100_000), "not JSON"),
        (document([1, 2]), "not a JSON object"),
        (document({}), "no tensors"),
        (document({"w": 1}), "'w'.*dtype, shape"),
        (document({"w": None}), "'w'.*dtype, shape"),
        (document({"w": entry(offsets=(0, 4, 8))}), "'w'.*data_offsets"),
        (document({"w": entry("BOOL", (5,))}), "'w'.*span 4"),
        (document({"w": entry("BOOL", (2,), (0, 2))}, b"\1\2"), "'w'.*other than 0 and 1"),
        (document({"w": entry("F8_E8M0", (4,))}), "'w'.*F8_E8M0 is none of F64"),
        (document({"w": {"dtype": 5, "shape": [1], "data_offsets": [0, 4]}}), "'w'.*5 is none"),
        (document({"w": entry(shape=(-1,))}), "'w'.*shape"),
        (document({"w": entry(shape=(True,))}), "'w'.*shape"),
        (document({"w": entry(shape=(1.0,))}), "'w'.*shape"),
        (document({"w": entry(shape=(1,) * 33)}), "'w'.*32"),
        (document({"w": entry(offsets=(0, 8))}, b"\0" * 8), "'w'.*span 8"),
        (document({"w": entry(offsets=(-4, 0))}), "'w'.*data_offsets"),
        (document({"w": entry(shape=(2**62, 2**62))}), "'w'.*span"),
        (document({"a": entry(), "b": entry(offsets=(2, 6))}, b"\0" * 6), "'b'.*overlaps"),
        (document({"a": entry(), "b": entry(offsets=(8, 12))}, b"\0" * 12), "'b'.*hole"),
        (document({"a": entry(offsets=(4, 8))}, b"\0" * 8), "'a'.*hole"),
        (document({"w": entry()}, b"\0" * 3), "cut off"),
        (document({"w": entry()}, b"\0" * 5), "other bytes"),
        (document({"w": entry()}, np.float32("nan").tobytes()), "'w'.*finite"),
        (document({"w": entry(shape=(0,), offsets=(0, 1))}, b"\0"), "'w'.*span 1"),
        (document({"": entry()}, b"\0" * 4), "empty name"),
        (document({"version": entry()}, b"\0" * 4), "reserved"),
        (document(b'{"w":{},"w":{}}'), "'w'.*twice"),
        (document({"__metadata__": {"a": 1}, "w": entry()}, b"\0" * 4), "__metadata__"),
        (document({"__metadata__": [], "w": entry()}, b"\0" * 4), "__metadata__"),
        (document({"__metadata__": {"a": "\ud800"}, "w": entry()}, b"\0" * 4), "not Unicode"),
        (
            document(
                {"w": entry(shape=(2**31,), offsets=(0, 2**33)), "v": entry(offsets=(2**33, 2**33 + 4))}
            ),
            "limit",
        ),
    ],
)
def test_malformed_documents_say_what_is_wrong(content: bytes, reason: str) -> None:
    with pytest.raises(TensorError, match=reason):
        from_safetensors(content)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, "no tensors"),
        ({"w": np.array(["a"])}, "'w'.*no dtype of a model"),
        ({"w": np.array([1j])}, "'w'.*no dtype of a model"),
        ({"w": np.zeros(1, np.longdouble)}, "'w'.*no dtype of a model"),
        ({"w": np.array([np.inf])}, "'w'.*finite"),
        ({"": np.zeros(1)}, "empty name"),
        ({f"{n:0500}": np.zeros(1) for n in range(40_000)}, "over the limit"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(model: Tensors, reason: str) -> None:
    with pytest.raises(TensorError, match=reason):
        to_safetensors(model)


def test_a_header_may_be_without_tensors_and_a_model_may_not() -> None:
    alone = write_header({}, {"values": "{}"})[0]
    header = read_header(alone)
    assert header.entries == {}
    assert header.metadata == {"values": "{}"}
    assert header.length == len(alone)
    with pytest.raises(TensorError, match="no tensors"):
        from_safetensors(alone)


def test_a_header_with_endless_values_is_refused_before_it_is_read() -> None:
    many = b'{"__metadata__":[' + b"[]," * (11 * MAX_TENSORS) + b"[]]}"
    with pytest.raises(TensorError, match=r"the safetensors header: .*more than 1000000 values"):
        read_header(len(many).to_bytes(8, "little") + many)
    with pytest.raises(TensorError, match=r"compression: .*more than 1000000 values"):
        read_description(many.decode())
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    named = {f"t{number}": one for number in range(20_000)}
    text = json.dumps(named | {"__metadata__": {"plan": json.dumps([[]] * 500_000)}}).encode()
    assert len(read_header(len(text).to_bytes(8, "little") + text).entries) == 20_000


def test_a_name_that_a_header_has_twice_is_named_however_many_there_are() -> None:
    names = ",".join(f'"t{number}":0' for number in range(MAX_TENSORS))
    text = f'{{{names},"t7":0}}'.encode()
    with pytest.raises(TensorError, match=r"'t7'.* twice"):
        read_header(len(text).to_bytes(8, "little") + text)
