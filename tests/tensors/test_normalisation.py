"""Normalisation and attention against their definitions, computed in float64 by NumPy."""

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import given

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.python_machine import PythonMachine

MACHINES = pytest.mark.parametrize("machine_", [NumpyMachine, PythonMachine])


def numbers(*shape: int) -> st.SearchStrategy[Any]:
    return hnp.arrays("float64", shape, elements=st.floats(-5, 5).map(lambda value: round(value, 3)))


def normalised(x: Any, axis: Any, eps: float = 1e-5) -> Any:
    return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(x.var(axis=axis, keepdims=True) + eps)


def close(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-9, atol=1e-9)


@MACHINES
@given(x=numbers(2, 3, 4), weight=numbers(4), bias=numbers(4))
def test_layer_norm(machine_: type[StepMachine], x: Any, weight: Any, bias: Any) -> None:
    session.use(machine_())
    w, b = pt.array(weight), pt.array(bias)
    close(pt.layer_norm(pt.array(x)), normalised(x, -1))
    close(pt.layer_norm(pt.array(x), w, b, eps=0.1), normalised(x, -1, 0.1) * weight + bias)
    close(pt.layer_norm(pt.array(x), w, axis=(-1, -2)), normalised(x, (1, 2)) * weight)
    half = pt.layer_norm(pt.array(x.astype("float32")))
    assert half.dtype == "float32"


@MACHINES
@given(x=numbers(2, 4, 3), weight=numbers(4), bias=numbers(4), groups=st.sampled_from([1, 2, 4]))
def test_group_norm(machine_: type[StepMachine], x: Any, weight: Any, bias: Any, groups: int) -> None:
    session.use(machine_())
    expected = normalised(x.reshape(2, groups, -1), -1).reshape(x.shape)
    close(pt.group_norm(pt.array(x), groups), expected)
    scaled = expected * weight[:, None] + bias[:, None]
    close(pt.group_norm(pt.array(x), groups, pt.array(weight), pt.array(bias)), scaled)


@MACHINES
@given(x=numbers(3, 2, 4), weight=numbers(2), bias=numbers(2), last=st.booleans())
def test_batch_norm(machine_: type[StepMachine], x: Any, weight: Any, bias: Any, last: bool) -> None:
    """Of the batch's statistics, which it returns as running ones take them; and of those that are given."""
    session.use(machine_())
    moved, axis = (np.moveaxis(x, 1, -1), -1) if last else (x, 1)
    result, mean, var = pt.batch_norm(pt.array(moved), pt.array(weight), pt.array(bias), axis=axis)
    expected = normalised(x, (0, 2)) * weight[:, None] + bias[:, None]
    close(result, np.moveaxis(expected, 1, -1) if last else expected)
    close(mean, x.mean(axis=(0, 2)))
    close(var, x.var(axis=(0, 2), ddof=1))
    given_mean, given_var = pt.array([1.0, -1.0], "float64"), pt.array([4.0, 0.25], "float64")
    result, mean, var = pt.batch_norm(pt.array(moved), mean=given_mean, var=given_var, axis=axis, eps=0.0)
    expected = (x - np.array([[1.0], [-1.0]])) / np.array([[2.0], [0.5]])
    close(result, np.moveaxis(expected, 1, -1) if last else expected)
    assert mean is given_mean
    assert var is given_var


def test_batch_norm_trains_in_a_traced_function(machine: StepMachine) -> None:
    """Its statistics come out beside the loss."""

    @pt.jit
    def step(weight: Any, running: Any, x: Any) -> Any:
        def loss(weight: Any) -> Any:
            result, mean, _ = pt.batch_norm(x, weight)
            return (result * x).sum(), mean

        (value, mean), slope = pt.value_and_grad(loss)(weight)
        weight -= 0.1 * slope
        running *= 0.9
        running += 0.1 * mean
        return value

    weight, running = pt.ones(2), pt.zeros(2)
    step(weight, running, pt.array([[1.0, 2.0], [3.0, 6.0]]))
    assert running.tolist() == pytest.approx([0.2, 0.4])
    assert weight.tolist() == pytest.approx([0.8, 0.6], abs=1e-4)


@MACHINES
@given(
    query=numbers(2, 3, 4),
    key=numbers(2, 5, 4),
    value=numbers(2, 5, 2),
    mask=hnp.arrays("bool", (3, 5)),
    causal=st.booleans(),
)
def test_attention(
    machine_: type[StepMachine], query: Any, key: Any, value: Any, mask: Any, causal: bool
) -> None:
    session.use(machine_())
    mask[:, 0] = True  # a query has a key
    q, k, v = map(pt.array, (query, key, value))
    scores = query @ key.swapaxes(-1, -2) / 2
    allowed = mask & np.tri(3, 5, dtype=bool) if causal else mask
    weights = scipy.special.softmax(np.where(allowed, scores, -np.inf), axis=-1)
    close(pt.scaled_dot_product_attention(q, k, v, mask=pt.array(mask), causal=causal), weights @ value)
    added = pt.array(np.where(mask, 0.0, -1e9))
    close(pt.scaled_dot_product_attention(q, k, v, mask=added, causal=causal), weights @ value)
    if mask.all():
        close(
            pt.scaled_dot_product_attention(q, k[:1], v, causal=causal, scale=0.5)[0], weights[0] @ value[0]
        )


def test_attention_to_nothing_is_no_nan(machine: StepMachine) -> None:
    x = pt.array([[1.0, 2.0], [3.0, 5.0]])
    mask = pt.array([[False, False], [True, False]])

    def attend(x: Any) -> Any:
        return pt.scaled_dot_product_attention(x, x, x, mask=mask)

    assert attend(x).tolist() == [[2.0, 3.5], [1.0, 2.0]]
    assert pt.grad(lambda x: attend(x).sum())(x).tolist() == [[1.5, 1.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: pt.group_norm(x, 2), "in 2 groups of channels"),
        (lambda x: pt.batch_norm(x, mean=x[0]), "together, or neither"),
        (lambda x: pt.scaled_dot_product_attention(x, x, x[:1]), r"got \[2, 3\], \[2, 3\] and \[1, 3\]"),
        (lambda x: pt.scaled_dot_product_attention(x, x[0], x), "takes"),
    ],
)
def test_what_is_refused(function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        function(pt.ones((2, 3)))
