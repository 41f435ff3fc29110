"""Activation functions of networks, made of operations: each element by itself."""

import math
from typing import Any, Literal

from propeller.tensors.array import Array, record
from propeller.tensors.shapes import TensorError

__all__ = ["elu", "gelu", "leaky_relu", "relu", "sigmoid", "silu", "softplus"]


def relu(x: Any) -> Array:
    """Each element, or 0 where it is negative."""
    return record("relu", x)


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """Each element, times ``slope`` where it is negative."""
    return record("where", x > 0, x, x * slope)


def elu(x: Array, alpha: float = 1.0) -> Array:
    """Each element, or alpha (exp(x) - 1) where it is negative (Clevert et al., arXiv:1511.07289)."""
    # Of the smaller of x and 0: what overflows in a branch that is not chosen would make NaN of the gradient.
    return record("where", x > 0, x, record("expm1", record("minimum", x, 0.0)) * alpha)


def sigmoid(x: Any) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return record("sigmoid", x)


def softplus(x: Any) -> Array:
    """log(1 + exp(x)), without overflow."""
    return record("softplus", x)


def silu(x: Array) -> Array:
    """Each element times its sigmoid, also called swish."""
    return x * record("sigmoid", x)


def gelu(x: Array, approximate: Literal["none", "tanh"] = "none") -> Array:
    """Each element times the standard normal distribution's function of it (Hendrycks and Gimpel, arXiv:1606.08415).

    Args:
        x: The elements.
        approximate: ``"tanh"`` for the paper's formula with the hyperbolic tangent, as in GPT-2: apart by up to 5e-4.

    Raises:
        TensorError: ``approximate`` is something else.
    """
    if approximate == "none":
        return x * (record("erf", x * math.sqrt(0.5)) + 1.0) * 0.5
    if approximate == "tanh":
        inner = x * (record("square", x) * (0.044715 * math.sqrt(2 / math.pi)) + math.sqrt(2 / math.pi))
        return x * (record("tanh", inner) + 1.0) * 0.5
    raise TensorError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r:.40}")
