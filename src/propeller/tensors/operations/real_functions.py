"""Functions of a real number, element by element: roots, exponentials, logarithms, sines and what is made of them. All give floats.

The kernels in plain Python give NumPy's answers where Python raises an error: infinities and NaN.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from propeller.tensors.operations.elementwise import unary
from propeller.tensors.operations.operation import Operation
from propeller.tensors.shapes import Spec, floating

_SLOPE_OF_ERF = 2 / math.sqrt(math.pi)
"""At 0."""


def _float(_name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    return floating(specs[0][0]), specs[0][1]


# Kernels in plain Python ------------------------------------------------------------------------------------


def _unbounded(function: Callable[[float], float]) -> Callable[[float], float]:
    """A function that grows out of the floats for large numbers."""

    def bounded(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf

    return bounded


def _sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log1p(x: float) -> float:
    return math.log1p(x) if x > -1 else -math.inf if x == -1 else math.nan


def _periodic(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda x: math.nan if math.isinf(x) else function(x)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x))) if x == x else x  # noqa: PLR0124 - NaN is not itself


# The operations ---------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="sqrt",
        operands=1,
        doc="a float (integers become `float32`)",
        infer=_float,
        gradient=lambda up, call, _record: [up * 0.5 / call.result],
        kernel=unary(_sqrt),
        ufunc="sqrt",
    ),
    Operation(
        name="exp",
        operands=1,
        doc="a float",
        infer=_float,
        gradient=lambda up, call, _record: [up * call.result],
        kernel=unary(_unbounded(math.exp)),
        ufunc="exp",
    ),
    Operation(
        name="expm1",
        operands=1,
        doc="exp(x) - 1, exact near 0 too, a float",
        infer=_float,
        gradient=lambda up, call, _record: [up * (call.result + 1.0)],
        kernel=unary(_unbounded(math.expm1)),
        ufunc="expm1",
    ),
    Operation(
        name="log",
        operands=1,
        doc="the natural logarithm, a float",
        infer=_float,
        gradient=lambda up, call, _record: [up / call.operands[0]],
        kernel=unary(_log),
        ufunc="log",
    ),
    Operation(
        name="log1p",
        operands=1,
        doc="the natural logarithm of 1 + x, exact near 0 too, a float",
        infer=_float,
        gradient=lambda up, call, _record: [up / (call.operands[0] + 1.0)],
        kernel=unary(_log1p),
        ufunc="log1p",
    ),
    Operation(
        name="sin",
        operands=1,
        doc="the sine, a float",
        infer=_float,
        gradient=lambda up, call, record: [up * record("cos", *call.operands)],
        kernel=unary(_periodic(math.sin)),
        ufunc="sin",
    ),
    Operation(
        name="cos",
        operands=1,
        doc="the cosine, a float",
        infer=_float,
        gradient=lambda up, call, record: [-up * record("sin", *call.operands)],
        kernel=unary(_periodic(math.cos)),
        ufunc="cos",
    ),
    Operation(
        name="tanh",
        operands=1,
        doc="the hyperbolic tangent, a float",
        infer=_float,
        gradient=lambda up, call, _record: [up * (1.0 - call.result * call.result)],
        kernel=unary(math.tanh),
        ufunc="tanh",
    ),
    Operation(
        name="erf",
        operands=1,
        doc="the error function, a float",
        infer=_float,
        gradient=lambda up, call, record: [
            up * (record("exp", -record("square", *call.operands)) * _SLOPE_OF_ERF)
        ],
        kernel=unary(math.erf),
    ),
    Operation(
        name="sigmoid",
        operands=1,
        doc="1 / (1 + exp(-x)) without overflow, a float",
        infer=_float,
        gradient=lambda up, call, _record: [up * call.result * (1.0 - call.result)],
        kernel=unary(_sigmoid),
    ),
    Operation(
        name="softplus",
        operands=1,
        doc="log(1 + exp(x)) without overflow, a float",
        infer=_float,
        gradient=lambda up, call, record: [up * record("sigmoid", *call.operands)],
        kernel=unary(_softplus),
    ),
)
