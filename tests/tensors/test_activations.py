"""Activation functions and losses against their definitions, computed in float64 by NumPy and SciPy, and their gradients' limits."""

from collections.abc import Callable
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
NUMBERS = st.floats(-50, 50, width=32)


def numbers(*shape: int) -> st.SearchStrategy[Any]:
    return hnp.arrays("float32", shape, elements=NUMBERS)


ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (pt.relu, lambda x: np.maximum(x, 0)),
    "leaky_relu": (lambda x: pt.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": (lambda x: pt.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0)))),
    "sigmoid": (pt.sigmoid, scipy.special.expit),
    "softplus": (pt.softplus, lambda x: np.logaddexp(x, 0)),
    "silu": (pt.silu, lambda x: x * scipy.special.expit(x)),
    "gelu": (pt.gelu, lambda x: x * scipy.special.ndtr(x)),
    "gelu by tanh": (
        lambda x: pt.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
}


@MACHINES
@pytest.mark.parametrize("name", ACTIVATIONS)
@given(x=numbers(2, 3))
def test_an_activation(machine_: type[StepMachine], name: str, x: Any) -> None:
    session.use(machine_())
    function, expected = ACTIVATIONS[name]
    for dtype, tolerance in (("float32", 5e-6), ("float64", 1e-12)):
        found = function(pt.array(x.astype(dtype)))
        assert found.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(found), expected(x.astype("float64")), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_finite_far_out(machine: StepMachine, name: str) -> None:
    """Where a branch that is not chosen overflows."""
    found = pt.grad(lambda x: ACTIVATIONS[name][0](x).sum())(pt.array([-2000.0, -100.0, 0.0, 100.0, 2000.0]))
    assert all(np.isfinite(found.tolist()))
    assert found.tolist()[-2:] == ([0.0, 0.0] if name == "sigmoid" else [1.0, 1.0])


def test_the_error_function_is_exact(machine: StepMachine) -> None:
    """To the last digits, near 0 and where its approximations meet."""
    x = np.concatenate([np.linspace(-7, 7, 3001), np.logspace(-30, 0, 301), [0.46875, 4.0, -4.0]])
    expected = scipy.special.erf(x)
    np.testing.assert_allclose(np.asarray(pt.erf(pt.array(x))), expected, rtol=2e-15)
    found = np.asarray(pt.erf(pt.array(x.astype("float32"))))
    np.testing.assert_allclose(found, scipy.special.erf(x.astype("float32").astype("float64")), rtol=5e-7)
    assert abs(found).max() <= 1
    assert pt.erf(pt.array([-float("inf"), -4.0, 4.0, 1e30])).tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_an_unknown_approximation() -> None:
    with pytest.raises(TensorError, match="'none' or 'tanh', not 'fast'"):
        pt.gelu(pt.ones(2), approximate="fast")  # type: ignore[arg-type]


@MACHINES
@given(
    x=numbers(4, 3),
    labels=hnp.arrays("int64", 4, elements=st.integers(0, 2)),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_cross_entropy(machine_: type[StepMachine], x: Any, labels: Any, smoothing: float) -> None:
    session.use(machine_())
    chances = scipy.special.log_softmax(x.astype("float64"), axis=-1)
    right = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    expected = -(right * chances).sum(-1)
    by_label = pt.cross_entropy(pt.array(x), pt.array(labels), label_smoothing=smoothing, reduction="none")
    np.testing.assert_allclose(np.asarray(by_label), expected, rtol=1e-5, atol=1e-5)
    by_chance = pt.cross_entropy(pt.array(x.reshape(2, 2, 3)), pt.array(right.reshape(2, 2, 3)))
    assert by_chance.item() == pytest.approx(expected.mean(), rel=1e-5, abs=1e-5)
    stacked = pt.cross_entropy(
        pt.array(x.reshape(2, 2, 3)),
        pt.array(labels.reshape(2, 2)),
        label_smoothing=smoothing,
        reduction="sum",
    )
    assert stacked.item() == pytest.approx(expected.sum(), rel=1e-5, abs=1e-5)


@MACHINES
@given(x=numbers(4), y=numbers(4))
def test_losses_of_numbers(machine_: type[StepMachine], x: Any, y: Any) -> None:
    session.use(machine_())
    one, other = x.astype("float64"), y.astype("float64")
    apart = np.abs(one - other)
    chance = (other + 50) / 100
    expected = {
        pt.mse_loss: apart**2,
        pt.l1_loss: apart,
        pt.huber_loss: np.where(apart <= 1, apart**2 / 2, apart - 0.5),
        pt.binary_cross_entropy: np.logaddexp(one, 0) - one * chance,
    }
    for loss, each in expected.items():
        target = chance if loss is pt.binary_cross_entropy else other
        found = [
            loss(pt.array(one), pt.array(target), reduction=reduction)
            for reduction in ("mean", "sum", "none")
        ]
        np.testing.assert_allclose(np.asarray(found[0]), each.mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.asarray(found[1]), each.sum(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.asarray(found[2]), each, rtol=1e-9, atol=1e-12)


def test_no_loss_overflows(machine: StepMachine) -> None:
    far = pt.array([[1e4, -1e4], [-1e30, 1e30]])
    value, slope = pt.value_and_grad(lambda x: pt.cross_entropy(x, pt.array([1, 1])))(far)
    assert value.item() == 1e4
    assert slope.tolist() == [[0.5, -0.5], [0.0, 0.0]]
    value, slope = pt.value_and_grad(lambda x: pt.binary_cross_entropy(x, pt.ones(2)))(far[0])
    assert value.item() == 5e3
    assert slope.tolist() == [0.0, -0.5]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            lambda x: pt.cross_entropy(x, pt.zeros(3, int)),
            r"labels of shape \[3\] are not one for each of \[2\]",
        ),
        (lambda x: pt.cross_entropy(x, x > 0), "labels are integers, got bool"),
        (lambda x: pt.cross_entropy(x, x[0]), "probabilities of shape"),
        (lambda x: pt.cross_entropy(x[0, 0], pt.array(0)), "no axis of classes"),
        (
            lambda x: pt.mse_loss(x, 0.0, reduction="average"),  # type: ignore[arg-type]
            "'mean', 'sum' or 'none', not 'average'",
        ),
        (lambda x: pt.norm(x, 3), "not 3"),
    ],
)
def test_what_a_loss_refuses(function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        function(pt.ones((2, 3)))


@MACHINES
@given(x=numbers(2, 3, 2), axis=st.sampled_from([None, 0, -1, (0, 2)]), keep=st.booleans())
def test_norms(machine_: type[StepMachine], x: Any, axis: Any, keep: bool) -> None:
    session.use(machine_())
    wide = x.astype("float64")
    for ord_, expected in {
        1: np.abs(wide).sum(axis=axis, keepdims=keep),
        2: np.sqrt((wide**2).sum(axis=axis, keepdims=keep)),
        np.inf: np.abs(wide).max(axis=axis, keepdims=keep),
    }.items():
        found = pt.norm(pt.array(x), ord_, axis=axis, keepdims=keep)
        assert found.shape == expected.shape
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


def test_a_norm_of_nothing_has_a_gradient(machine: StepMachine) -> None:
    assert pt.grad(pt.norm)(pt.zeros(2)).tolist() == [0.0, 0.0]
    assert pt.grad(pt.norm)(pt.array([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8])
    assert np.isnan(pt.norm(pt.array([float("nan"), 1.0])).item())
