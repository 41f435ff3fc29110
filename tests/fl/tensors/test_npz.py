"""``.npz`` files against numpy's own, and those that are not what they say."""

import io
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.tensors import TensorError, Tensors, to_safetensors
from propeller.fl.tensors.npz import ArchiveTooLargeError, from_npz, to_npz

arrays = st.sampled_from(["<f8", ">f4", "<f2", "<i8", ">i2", "u1", "<u8", "?"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements={"allow_nan": False, "allow_infinity": False} if "f" in dtype else None,
    )
)
names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8).filter(
    lambda name: name not in {"version", "__metadata__"}
)
models = st.dictionaries(names, arrays, min_size=1, max_size=4)


def saved(tensors: dict[str, Any], *, packed: bool = False) -> bytes:
    content = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(content, **tensors)
    return content.getvalue()


@given(model=models)
def test_numpy_reads_what_is_written(model: Tensors) -> None:
    content = to_npz(model, {"note": "lost"})
    assert content == to_npz(model, {})
    with np.load(io.BytesIO(content)) as found:
        assert sorted(found) == sorted(model)
        for name, array in model.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


@given(model=models.filter(lambda model: "file" not in model), packed=st.booleans(), by_column=st.booleans())
def test_what_numpy_writes_is_read(model: Tensors, packed: bool, by_column: bool) -> None:
    given = {name: np.asarray(array, order="F" if by_column else "C") for name, array in model.items()}
    found, metadata = from_npz(saved(given, packed=packed))
    assert metadata == {}
    assert list(found) == list(model)
    assert to_safetensors(found) == to_safetensors(model)


@given(model=models, data=st.data())
def test_changed_bytes_are_read_or_refused(model: Tensors, data: st.DataObject) -> None:
    content = bytearray(to_npz(model, {}))
    for _change in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, _metadata = from_npz(bytes(content), max_bytes=10_000)
    except TensorError:
        return
    to_safetensors(found)


@given(st.binary(max_size=200))
def test_whatever_bytes_are_sent_are_refused(content: bytes) -> None:
    with pytest.raises(TensorError):
        from_npz(content)


def test_a_tensor_may_be_named_file() -> None:
    assert list(from_npz(to_npz({"file": np.ones(2)}, {}))[0]) == ["file"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_floats_that_numpy_lacks_are_written_as_float32(dtype: Any) -> None:
    array = np.array([[1.5, -0.25]]).astype(dtype)
    found = from_npz(to_npz({"w": array}, {}))[0]["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[1.5, -0.25]])


def test_what_unpacks_to_too_much_is_not_unpacked() -> None:
    content = saved({"w": np.zeros(1_000_000)}, packed=True)
    assert len(content) < 20_000
    with pytest.raises(ArchiveTooLargeError, match="8000128 bytes, over the limit of 1000000"):
        from_npz(content, max_bytes=1_000_000)


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, body in members.items():
            file.writestr(name, body)
    return content.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, **options)
    return content.getvalue()


OBJECTS = np.array([{}], dtype=object)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive(), "no tensors"),
        (archive(w=b"x"), "must end in .npy"),
        (archive(**{"w.npy": b"x"}), "no array"),
        (archive(**{"w.npy": npy(np.ones(3))[:-1]}), "'w': has 23 bytes, not those of float64"),
        (archive(**{"w.npy": npy(np.ones(3)) + b"x"}), "'w': has 25 bytes"),
        (archive(**{"w.npy": npy(OBJECTS, allow_pickle=True)}), "'w': is object"),
        (archive(**{"w.npy": npy(np.array(["a"]))}), "'w': is <U1"),
        (archive(**{"w.npy": npy(np.ones(1, complex))}), "'w': is complex128"),
        (archive(**{"w.npy": npy(np.array([np.nan]))}), "'w': holds NaN"),
        (archive(**{"version.npy": npy(np.ones(1))}), "reserved"),
        (b"PK", "not an .npz file"),
    ],
)
def test_malformed_archives_say_what_is_wrong(content: bytes, reason: str) -> None:
    with pytest.raises(TensorError, match=reason):
        from_npz(content)
