"""Boolean masks as indices, read and set, as NumPy has them; and what they gather."""

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.python_machine import PythonMachine

MACHINES = pytest.mark.parametrize("machine_", [NumpyMachine, PythonMachine])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)
DTYPES = st.sampled_from(["float32", "float64", "int64", "uint8", "bool"])


def numbered(shape: Any, dtype: str) -> Any:
    return (np.arange(int(np.prod(shape))).reshape(shape) + 1).astype(dtype)


def draw_mask(data: st.DataObject, shape: Any) -> Any:
    rank = data.draw(st.integers(1, len(shape)))
    return data.draw(hnp.arrays("bool", shape[:rank]))


@MACHINES
@given(shape=SHAPES, dtype=DTYPES, data=st.data())
def test_a_mask_chooses(machine_: type[StepMachine], shape: Any, dtype: str, data: st.DataObject) -> None:
    session.use(machine_())
    x, mask = numbered(shape, dtype), draw_mask(data, shape)
    found = pt.array(x)[pt.array(mask)]
    assert (found.shape, found.dtype) == (x[mask].shape, dtype)
    np.testing.assert_array_equal(np.asarray(found), x[mask])
    if mask.size:
        np.testing.assert_array_equal(np.asarray(pt.array(x)[mask.tolist(), ...]), x[mask])
    if len(shape) > 1:
        columns = data.draw(hnp.arrays("bool", shape[1]))
        np.testing.assert_array_equal(np.asarray(pt.array(x)[:, pt.array(columns)]), x[:, columns])


@MACHINES
@given(shape=SHAPES, dtype=DTYPES, data=st.data(), each=st.booleans())
def test_what_a_mask_chooses_is_set(
    machine_: type[StepMachine], shape: Any, dtype: str, data: st.DataObject, each: bool
) -> None:
    """To one number, to what fits each of the chosen, or each to its own."""
    session.use(machine_())
    expected, mask = numbered(shape, dtype), draw_mask(data, shape)
    x = pt.array(expected)
    if each:
        value: Any = numbered(expected[mask].shape, dtype) + 7
        value = value.astype(dtype)
    else:
        value = data.draw(st.sampled_from([1, np.array(1, dtype), np.ones(shape[mask.ndim :], dtype)]))
        value = value if dtype != "bool" or not isinstance(value, int) else True
    x[pt.array(mask)] = pt.array(value) if isinstance(value, np.ndarray) else value
    expected[mask] = value
    assert x.dtype == dtype
    np.testing.assert_array_equal(np.asarray(x), expected)


@MACHINES
@given(shape=SHAPES, data=st.data())
def test_nonzero(machine_: type[StepMachine], shape: Any, data: st.DataObject) -> None:
    session.use(machine_())
    x = data.draw(hnp.arrays("int64", shape, elements=st.integers(-1, 1)))
    found, expected = pt.nonzero(pt.array(x)), np.nonzero(x)
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]
    assert {each.dtype for each in found} == {"int64"}


def test_a_mask_is_set_in_a_traced_function(machine: StepMachine) -> None:
    outside = pt.array([True, False, True])

    def clear(x: Any, low: float) -> None:
        x[x < low] = 0.0
        x[outside] = -1.0

    x = pt.array([1.0, 2.0, 3.0])
    pt.jit(clear)(x, 2.5)
    assert x.tolist() == [-1.0, 0.0, -1.0]
    assert pt.jit(lambda x: x[[True, False, True]])(x).tolist() == [-1.0, -1.0]
    with pytest.raises(TensorError, match="how many elements a mask chooses"):
        pt.jit(lambda x: x[outside])(x)  # it has a value, but another one at each call


def test_a_mask_in_a_gradient(machine: StepMachine) -> None:
    found = pt.grad(lambda x: (x[x > 1.5] * pt.array([2.0, 3.0])).sum())(pt.array([1.0, 2.0, 3.0]))
    assert found.tolist() == [0.0, 2.0, 3.0]


def test_numbers_that_do_not_fit(machine: StepMachine) -> None:
    x = pt.array([1, 2, 3])
    with pytest.raises(TensorError, match="use astype"):
        x[x > 1] = 0.5
    small = x.astype("uint8")
    with pytest.raises(TensorError, match="use astype"):
        small[x > 1] = 300
    with pytest.raises(TensorError, match=r"shapes \[3\] and \[2\] do not fit"):
        x[x > 1] = x


@MACHINES
@given(data=st.data(), axis=st.integers(-2, 1))
def test_take_along_axis_broadcasts(machine_: type[StepMachine], data: st.DataObject, axis: int) -> None:
    session.use(machine_())
    x = numbered((2, 3), "float32")
    size = x.shape[axis]
    shape = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 3)]))
    indices = data.draw(hnp.arrays("int64", shape, elements=st.integers(-size, size - 1)))
    found = pt.take_along_axis(pt.array(x), pt.array(indices), axis)
    np.testing.assert_array_equal(np.asarray(found), np.take_along_axis(x, indices, axis))
