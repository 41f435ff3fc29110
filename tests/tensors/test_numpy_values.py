"""NumPy's arrays and scalars as arrays of a program, and back: in a native run, where NumPy is."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError

pytestmark = pytest.mark.usefixtures("machine")


@pytest.mark.parametrize(
    ("dtype", "ours"),
    [
        *(
            (name, "float32")
            for name in ("float32", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ">f4")
        ),
        ("float64", "float64"),
        *((name, "int64") for name in ("int64", "int32", "int16", "int8", "uint32", "uint16", ">i2")),
        ("uint8", "uint8"),
        ("uint64", "uint64"),
        ("bool", "bool"),
    ],
)
def test_an_array_of_numpy_there_and_back(dtype: Any, ours: str) -> None:
    for values in (
        np.array([[1, 0, 1], [0, 1, 0]]).astype(dtype).T,
        np.array(1).astype(dtype),
        np.zeros((0, 2), dtype),
    ):
        array = pt.array(values)
        assert (array.dtype, array.shape) == (ours, values.shape)
        assert array.tolist() == values.tolist()
        back = np.asarray(array)
        assert (back.dtype.name, back.shape) == (ours, values.shape)
        np.testing.assert_array_equal(back, values.astype(ours))
        back[...] = 1  # its own memory


def test_scalars_and_lists_of_them() -> None:
    assert pt.array(np.float32(0.5)).dtype == "float32"
    assert pt.array(np.float64(0.5)).dtype == "float64"
    assert pt.array([np.float32(0.5), np.int64(2), True]).tolist() == [0.5, 2.0, 1.0]
    assert pt.array([np.array([1, 2]), np.array([3, 4])]).dtype == "int64"
    assert pt.array(np.array([1, 2]), "float64").tolist() == [1.0, 2.0]
    x = pt.array([1.0, 2.0])
    assert (x * np.float32(2) + np.int64(1)).tolist() == [3.0, 5.0]
    assert (np.float32(2) * x).tolist() == [2.0, 4.0]
    assert (x * np.bool_(True)).dtype == "float32"


def test_numpys_own_arguments() -> None:
    x = pt.array([1.5, 2.5])
    assert np.asarray(x, dtype=np.int32).tolist() == [1, 2]
    assert np.array(x, copy=True).tolist() == [1.5, 2.5]
    assert np.stack([x, x]).shape == (2, 2)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="copy"):
            np.array(x, copy=False)


def test_what_is_refused() -> None:
    x = pt.array([1.0, 2.0])
    for mixed in (lambda: x + np.ones(2), lambda: np.ones(2) + x):
        with pytest.raises(TensorError, match=r"make it one with array\(…\)"):
            mixed()
    for none in (np.array(["a"]), np.array([1j]), np.array([None])):
        with pytest.raises(TensorError, match="no dtype of numbers"):
            pt.array(none)
