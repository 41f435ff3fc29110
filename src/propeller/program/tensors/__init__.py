"""Arrays for programs: NumPy's manner, done by the sandbox's host at NumPy's speed, or by plain Python where there is no such host.

    >>> from propeller.program import tensors as pt
    >>> x = pt.array([[1.0, 2.0], [3.0, 4.0]])
    >>> (x @ x.T).sum().item()
    52.0

Operations are recorded and cross to the host together, when a value is needed. ``jit`` records a whole function once.
"""

from propeller.program.tensors.array import Array
from propeller.program.tensors.functions import (
    Random,
    arange,
    array,
    broadcast_to,
    concatenate,
    exp,
    full,
    log,
    log_softmax,
    matmul,
    maximum,
    minimum,
    one_hot,
    ones,
    ones_like,
    random,
    relu,
    sigmoid,
    sign,
    softmax,
    sqrt,
    square,
    stack,
    tanh,
    where,
    zeros,
    zeros_like,
)
from propeller.program.tensors.grad import grad, value_and_grad
from propeller.program.tensors.shapes import TensorError
from propeller.program.tensors.trace import jit

__all__ = [
    "Array",
    "Random",
    "TensorError",
    "arange",
    "array",
    "broadcast_to",
    "concatenate",
    "exp",
    "full",
    "grad",
    "jit",
    "log",
    "log_softmax",
    "matmul",
    "maximum",
    "minimum",
    "one_hot",
    "ones",
    "ones_like",
    "random",
    "relu",
    "sigmoid",
    "sign",
    "softmax",
    "sqrt",
    "square",
    "stack",
    "tanh",
    "value_and_grad",
    "where",
    "zeros",
    "zeros_like",
]
