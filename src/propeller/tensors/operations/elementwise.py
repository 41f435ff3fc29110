"""Operations element by element: of one array, or of several that are broadcast.

The kernels in plain Python give NumPy's answers where Python raises an error: infinities, NaN, zeros.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from propeller.tensors.operations.flat import rounded, spread
from propeller.tensors.operations.operation import (
    Gradient,
    Kernel,
    KernelFactory,
    Operation,
    OperationCall,
    Record,
)
from propeller.tensors.shapes import FLOAT, INT, Spec, TensorError, broadcast, floating, promote

# What they yield --------------------------------------------------------------------------------------------


def _same(_name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    dtype, shape = specs[0]
    return "int64" if dtype == "bool" else dtype, shape


def _pair(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (first, one), (second, other) = specs
    return promote(first, second), broadcast(name, one, other)


def _arithmetic(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _pair(name, specs, params)
    return "int64" if dtype == "bool" else dtype, shape


def _quotient(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _pair(name, specs, params)
    return floating(dtype), shape


def _comparison(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    return "bool", _pair(name, specs, params)[1]


def _logical(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    shape = specs[0][1]
    for dtype, other in specs:
        if dtype != "bool":
            raise TensorError(f"{name} takes arrays of bool, got {dtype}")
        shape = broadcast(name, shape, other)
    return "bool", shape


def _choice(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    condition, one, other = specs
    if condition[0] != "bool":
        raise TensorError(f"where: the condition is an array of bool, got {condition[0]}")
    dtype = promote(one[0], other[0])
    strong = {FLOAT: "float32", INT: "int64"}.get(dtype, dtype)
    return strong, broadcast(name, broadcast(name, one[1], other[1]), condition[1])


# Gradients --------------------------------------------------------------------------------------------------


def _product_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    x, y = call.operands
    return [up * y, up * x]


def _quotient_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    divisor = call.operands[1]
    return [up / divisor, -up * call.result / divisor]


def _power_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x, power = call.operands
    is_array = hasattr(power, "dtype")
    if is_array and power.dtype != FLOAT:  # a traced function's float is one
        raise TensorError("pow has a gradient by its base only: give the power as a number")
    if not is_array and not power:
        return [record("full", params=[x.dtype, list(x.shape), 0])]
    return [up * (power * x ** (power - 1))]


def _chosen_gradient(comparison: str) -> Gradient:
    """Of the larger or smaller of two: it goes to the one that was chosen, to the first of equals."""

    def gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
        chosen = record(comparison, *call.operands)
        return [record("where", chosen, up, 0.0), record("where", chosen, 0.0, up)]

    return gradient


def _where_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    condition = call.operands[0]
    return [None, record("where", condition, up, 0.0), record("where", condition, 0.0, up)]


# Kernels in plain Python ------------------------------------------------------------------------------------


def unary(function: Callable[[Any], Any]) -> KernelFactory:
    """The kernel that applies a function of one number to each element."""

    def bind(_specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
        return lambda x: list(map(function, x))

    return bind


def _binary(function: Callable[[Any, Any], Any]) -> KernelFactory:
    def bind(specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
        (first, one), (second, other) = specs
        shape, dtypes = out[1], {first, second}
        if out[0] == "float32" or ("float32" in dtypes and not dtypes & {"float64", "int64"}):
            # Numbers beside float32, or that make it of integers, are float32, as in NumPy.
            return lambda x, y: list(
                map(
                    function,
                    spread(rounded(x, "float32"), one, shape),
                    spread(rounded(y, "float32"), other, shape),
                )
            )
        return lambda x, y: list(map(function, spread(x, one, shape), spread(y, other, shape)))

    return bind


def _where(specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    shapes = [shape for _, shape in specs]

    def kernel(*values: list[Any]) -> list[Any]:
        parts = [spread(value, shape, out[1]) for value, shape in zip(values, shapes, strict=True)]
        return [x if chosen else y for chosen, x, y in zip(*parts, strict=True)]

    return kernel


def _divide(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if not x or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1, y)


def _floordiv(x: Any, y: Any) -> Any:
    if y:
        return x // y if isinstance(x, int) or not math.isinf(x) else math.nan
    return _divide(x, y) if isinstance(x, float) or isinstance(y, float) else 0


def _mod(x: Any, y: Any) -> Any:
    if y:
        return x % y
    return math.nan if isinstance(x, float) or isinstance(y, float) else 0


def _power(x: float, y: float) -> float:
    negative = (x < 0 or (x == 0 and math.copysign(1, x) < 0)) and y % 2 == 1
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if negative else math.inf
    except ValueError:  # a negative power of zero, or a fractional one of a negative number
        return math.nan if x else -math.inf if negative else math.inf


def _relu(x: float) -> float:
    return x if x > 0 or x != x else 0  # noqa: PLR0124 - NaN is not itself


def _sign(x: float) -> float:
    return (x > 0) - (x < 0) if x == x else x  # noqa: PLR0124


def larger(x: Any, y: Any) -> Any:
    """The larger; NaN if one is."""
    return x if x >= y or x != x else y  # noqa: PLR0124


def smaller(x: Any, y: Any) -> Any:
    """The smaller; NaN if one is."""
    return x if x <= y or x != x else y  # noqa: PLR0124


# The operations ---------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="neg",
        operands=1,
        doc="the negative, of the same dtype; `bool` becomes `int64`",
        infer=_same,
        gradient=lambda up, _call, _record: [-up],
        kernel=unary(operator.neg),
        ufunc="negative",
    ),
    Operation(
        name="abs",
        operands=1,
        doc="without the sign, of the same dtype; `bool` becomes `int64`",
        infer=_same,
        gradient=lambda up, call, record: [up * record("sign", *call.operands)],
        kernel=unary(abs),
        ufunc="absolute",
    ),
    Operation(
        name="sign",
        operands=1,
        doc="-1, 0 or 1, of the same dtype (`bool` becomes `int64`); NaN for NaN",
        infer=_same,
        gradient=lambda _up, _call, _record: [None],
        kernel=unary(_sign),
        ufunc="sign",
    ),
    Operation(
        name="relu",
        operands=1,
        doc="the element, or 0 where it is negative, of the same dtype; `bool` becomes `int64`",
        infer=_same,
        gradient=lambda up, call, _record: [up * (call.operands[0] > 0)],
        kernel=unary(_relu),
    ),
    Operation(
        name="square",
        operands=1,
        doc="the element times itself, of the same dtype; `bool` becomes `int64`",
        infer=_same,
        gradient=lambda up, call, _record: [up * 2.0 * call.operands[0]],
        kernel=unary(lambda x: x * x),
        ufunc="square",
    ),
    Operation(
        name="add",
        operands=2,
        doc="broadcast, in the larger dtype; `bool` becomes `int64`",
        infer=_arithmetic,
        gradient=lambda up, _call, _record: [up, up],
        kernel=_binary(operator.add),
        ufunc="add",
    ),
    Operation(
        name="sub",
        operands=2,
        doc="as `add`",
        infer=_arithmetic,
        gradient=lambda up, _call, _record: [up, -up],
        kernel=_binary(operator.sub),
        ufunc="subtract",
    ),
    Operation(
        name="mul",
        operands=2,
        doc="as `add`",
        infer=_arithmetic,
        gradient=_product_gradient,
        kernel=_binary(operator.mul),
        ufunc="multiply",
    ),
    Operation(
        name="mod",
        operands=2,
        doc="the rest of `floordiv`, with the divisor's sign; otherwise as `add`",
        infer=_arithmetic,
        gradient=None,
        kernel=_binary(_mod),
        ufunc="remainder",
    ),
    Operation(
        name="floordiv",
        operands=2,
        doc="the quotient, rounded down; otherwise as `add`",
        infer=_arithmetic,
        gradient=None,
        kernel=_binary(_floordiv),
        ufunc="floor_divide",
    ),
    Operation(
        name="maximum",
        operands=2,
        doc="the larger: broadcast, in the larger dtype; NaN if one is",
        infer=_pair,
        gradient=_chosen_gradient("ge"),
        kernel=_binary(larger),
        ufunc="maximum",
    ),
    Operation(
        name="minimum",
        operands=2,
        doc="the smaller: broadcast, in the larger dtype; NaN if one is",
        infer=_pair,
        gradient=_chosen_gradient("le"),
        kernel=_binary(smaller),
        ufunc="minimum",
    ),
    Operation(
        name="div",
        operands=2,
        doc="broadcast; a float (integers become `float32`)",
        infer=_quotient,
        gradient=_quotient_gradient,
        kernel=_binary(_divide),
        ufunc="true_divide",
    ),
    Operation(
        name="pow",
        operands=2,
        doc="broadcast; a float (integers become `float32`)",
        infer=_quotient,
        gradient=_power_gradient,
        kernel=_binary(_power),
        ufunc="float_power",
    ),
    *(
        Operation(
            name=name,
            operands=2,
            doc=f"whether x {sign} y: broadcast, `bool`",
            infer=_comparison,
            gradient=None,
            kernel=_binary(getattr(operator, name)),
        )
        for name, sign in {"eq": "=", "ne": "≠", "lt": "<", "le": "≤", "gt": ">", "ge": "≥"}.items()
    ),
    Operation(
        name="and",
        operands=2,
        doc="of `bool` only: broadcast",
        infer=_logical,
        gradient=None,
        kernel=_binary(operator.and_),
        ufunc="logical_and",
    ),
    Operation(
        name="or",
        operands=2,
        doc="of `bool` only: broadcast",
        infer=_logical,
        gradient=None,
        kernel=_binary(operator.or_),
        ufunc="logical_or",
    ),
    Operation(
        name="not",
        operands=1,
        doc="of `bool` only",
        infer=_logical,
        gradient=None,
        kernel=unary(operator.not_),
        ufunc="logical_not",
    ),
    Operation(
        name="where",
        operands=3,
        doc="of a condition of `bool` and two more, all broadcast: the second where it holds, else the third",
        infer=_choice,
        gradient=_where_gradient,
        kernel=_where,
    ),
)
