"""Operations along axes: sums, means, extremes and where they are, softmax, and the matrix product."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from propeller.tensors.operations.elementwise import larger, smaller
from propeller.tensors.operations.flat import groups_of, offsets_of, strides_of
from propeller.tensors.operations.operation import Kernel, KernelFactory, Operation, OperationCall, Record
from propeller.tensors.shapes import (
    Spec,
    TensorError,
    axis_of,
    broadcast,
    elements,
    floating,
    promote,
    sum_dtype,
)

# What they yield --------------------------------------------------------------------------------------------


def _reduced(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = specs[0]
    axes, keep = params
    gone = set(range(len(shape))) if axes is None else {axis_of(name, axis, len(shape)) for axis in axes}
    if type(keep) is not bool or (axes is not None and len(gone) != len(axes)):
        raise TensorError(f"{name}: {params!r:.80} is not [axes, each once, and whether they are kept]")
    return dtype, tuple(1 if n in gone else size for n, size in enumerate(shape) if keep or n not in gone)


def _total(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _reduced(name, specs, params)
    return sum_dtype(dtype), shape


def _average(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _reduced(name, specs, params)
    return floating(dtype), shape


def _extreme(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    result, shape = _reduced(name, specs, params), specs[0][1]
    axes = range(len(shape)) if params[0] is None else params[0]
    if any(shape[axis] == 0 for axis in axes):
        raise TensorError(f"{name}: nothing to choose from in shape {list(shape)}")
    return result


def _soft_extreme(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _extreme(name, specs, params)
    return floating(dtype), shape


def _position(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    shape = specs[0][1]
    left: tuple[int, ...] = ()
    if params is None:
        among = elements(shape)
    else:
        axis = axis_of(name, params, len(shape))
        left, among = shape[:axis] + shape[axis + 1 :], shape[axis]
    if among == 0:
        raise TensorError(f"{name}: nothing to choose from in shape {list(shape)}")
    return "int64", left


def _along(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    axis = axis_of(name, params, len(specs[0][1]))
    if specs[0][1][axis] == 0:
        raise TensorError(f"{name}: axis {axis} of shape {list(specs[0][1])} has nothing in it")
    return floating(specs[0][0]), specs[0][1]


def _product(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (first, one), (second, other) = specs
    if not one or not other:
        raise TensorError("matmul takes arrays of one or more dimensions")
    inner = other[-2] if len(other) > 1 else other[0]
    if one[-1] != inner:
        raise TensorError(
            f"matmul: shapes {list(one)} and {list(other)} do not fit: {one[-1]} is not {inner}"
        )
    dtype = promote(first, second)
    if dtype == "bool":
        raise TensorError("matmul does not take arrays of bool; use astype")
    stack = broadcast(name, one[:-2], other[:-2])
    return dtype, stack + one[-2:-1] + (other[-1:] if len(other) > 1 else ())


# Gradients --------------------------------------------------------------------------------------------------


def _shaped(x: Any, shape: Sequence[int]) -> Any:
    return x if x.shape == tuple(shape) else x.reshape(shape)


def sum_to_shape(gradient: Any, shape: tuple[int, ...]) -> Any:
    """A gradient summed over what broadcasting repeated."""
    if gradient.shape == shape:
        return gradient
    ahead = len(gradient.shape) - len(shape)
    axes = [
        *range(ahead),
        *(ahead + at for at, size in enumerate(shape) if size == 1 and gradient.shape[ahead + at] != 1),
    ]
    return _shaped(gradient.sum(axes), shape)


def _with_axes(x: Any, call: OperationCall) -> Any:
    """What a reduction left, or its gradient, with the reduced axes back in place, of size 1."""
    operand, (axes, keep) = call.operands[0], call.params
    if keep:
        return x
    gone = set(range(operand.ndim)) if axes is None else {axis % operand.ndim for axis in axes}
    return _shaped(x, [1 if at in gone else size for at, size in enumerate(operand.shape)])


def _zeros_like(x: Any, record: Record) -> Any:
    return record("full", params=[x.dtype, list(x.shape), 0])


def _sum_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    return [_with_axes(up, call) + _zeros_like(call.operands[0], record)]


def _mean_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x = call.operands[0]
    return [_with_axes(up, call) * (call.result.size / max(x.size, 1)) + _zeros_like(x, record)]


def _extreme_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    """Shared evenly where several are the largest."""
    x, (axes, keep) = call.operands[0], call.params
    chosen = (x == _with_axes(call.result, call)).astype(x.dtype)
    return [_with_axes(up, call) * chosen / _with_axes(chosen.sum(axes, keepdims=keep), call)]


def _logsumexp_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    return [_with_axes(up, call) * record("exp", call.operands[0] - _with_axes(call.result, call))]


def _softmax_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    return [(up - (up * call.result).sum(call.params, keepdims=True)) * call.result]


def _log_softmax_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    return [up - record("exp", call.result) * up.sum(call.params, keepdims=True)]


def _matmul_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    a, b = call.operands
    rows, columns = a if a.ndim > 1 else a.reshape(1, -1), b if b.ndim > 1 else b.reshape(-1, 1)
    shape = up.shape
    if a.ndim == 1:
        shape = (*shape[: len(shape) - (b.ndim > 1)], 1, *shape[len(shape) - (b.ndim > 1) :])
    if b.ndim == 1:
        shape = (*shape, 1)
    wide = _shaped(up, shape)
    of_rows = _shaped(sum_to_shape(wide @ _transposed(columns), rows.shape), a.shape)
    if (
        a.ndim > 2 and b.ndim == 2
    ):  # one matrix for the whole stack: its gradient is one product, not the sum of as many
        count = elements(a.shape[:-1])
        return [of_rows, a.reshape(count, b.shape[0]).T @ up.reshape(count, b.shape[1])]
    return [
        of_rows,
        _shaped(sum_to_shape(_transposed(rows) @ wide, columns.shape), b.shape),
    ]


def _transposed(x: Any) -> Any:
    order = list(range(x.ndim))
    order[-2:] = order[:-3:-1]
    return x.transpose(*order)


# Kernels in plain Python ------------------------------------------------------------------------------------


def _add(values: list[Any]) -> Any:
    if not values or not isinstance(values[0], float):
        return sum(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # it is infinite, or no number
        return sum(values)


def _mean(values: list[Any]) -> float:
    return _add(values) / len(values) if values else math.nan


def _logsumexp(values: list[Any]) -> float:
    most = reduce(larger, values)
    if not math.isfinite(most):
        return float(most)
    return float(most + math.log(_add([math.exp(value - most) for value in values])))


def _first(better: Callable[[Any, Any], bool]) -> Callable[[list[Any]], int]:
    """Where the first of the best is; NaN comes before all."""

    def position(values: list[Any]) -> int:
        best = 0
        for at, value in enumerate(values):
            if value != value:  # noqa: PLR0124 - NaN is not itself
                return at
            if better(value, values[best]):
                best = at
        return best

    return position


def _reduction(function: Callable[[list[Any]], Any]) -> KernelFactory:
    def bind(specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
        shape = specs[0][1]
        groups = groups_of(shape, range(len(shape)) if params[0] is None else params[0])
        return lambda x: [function([x[at] for at in group]) for group in groups]

    return bind


def _search(first: Callable[[list[Any]], int]) -> KernelFactory:
    reduction = _reduction(first)

    def bind(specs: Sequence[Spec], axis: Any, out: Spec) -> Kernel:
        return reduction(specs, [None if axis is None else [axis], False], out)

    return bind


def _normalised(*, logarithm: bool) -> KernelFactory:
    def bind(specs: Sequence[Spec], axis: Any, _out: Spec) -> Kernel:
        groups = groups_of(specs[0][1], [axis])

        def kernel(x: list[Any]) -> list[Any]:
            result = [0.0] * len(x)
            for group in groups:
                most = reduce(larger, [x[at] for at in group])
                powers = [math.exp(x[at] - most) for at in group]
                total = _add(powers)
                shift = math.log(total)
                for at, power in zip(group, powers, strict=True):
                    result[at] = x[at] - most - shift if logarithm else power / total
            return result

        return kernel

    return bind


def _matmul(specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    one, other = specs[0][1], specs[1][1]
    first = one if len(one) > 1 else (1, *one)
    second = other if len(other) > 1 else (*other, 1)
    rows, inner, columns = first[-2], first[-1], second[-1]
    stack = out[1][: len(out[1]) - (len(one) > 1) - (len(other) > 1)]

    def starts(shape: tuple[int, ...]) -> list[int]:
        """Where each matrix of the stack begins."""
        lead = (1,) * (len(stack) - len(shape) + 2) + shape[:-2]
        strides = [0 if size == 1 else stride for size, stride in zip(lead, strides_of(lead), strict=True)]
        return [at * shape[-2] * shape[-1] for at in offsets_of(stack, strides)]

    places = list(zip(starts(first), starts(second), strict=True))

    def kernel(x: list[Any], y: list[Any]) -> list[Any]:
        result: list[Any] = []
        for at, to in places:
            turned = [y[to + column : to + inner * columns : columns] for column in range(columns)]
            for row in range(at, at + rows * inner, inner or 1) if inner else [0] * rows:
                line = x[row : row + inner]
                result.extend(sum(map(operator.mul, line, column)) for column in turned)
        return result

    return kernel


# The operations ---------------------------------------------------------------------------------------------

_AXES = "`[axes or null, keepdims]`"

OPERATIONS = (
    Operation(
        name="matmul",
        operands=2,
        doc="the matrix product: one dimension or more each; stacks are broadcast",
        infer=_product,
        gradient=_matmul_gradient,
        kernel=_matmul,
    ),
    Operation(
        name="sum",
        operands=1,
        params=_AXES,
        doc="of the same dtype; `bool` and `uint8` become `int64`",
        infer=_total,
        gradient=_sum_gradient,
        kernel=_reduction(_add),
    ),
    Operation(
        name="mean",
        operands=1,
        params=_AXES,
        doc="a float (integers become `float32`)",
        infer=_average,
        gradient=_mean_gradient,
        kernel=_reduction(_mean),
    ),
    Operation(
        name="max",
        operands=1,
        params=_AXES,
        doc="the largest; NaN if one is",
        infer=_extreme,
        gradient=_extreme_gradient,
        kernel=_reduction(lambda values: reduce(larger, values)),
    ),
    Operation(
        name="min",
        operands=1,
        params=_AXES,
        doc="the smallest; NaN if one is",
        infer=_extreme,
        gradient=_extreme_gradient,
        kernel=_reduction(lambda values: reduce(smaller, values)),
    ),
    Operation(
        name="logsumexp",
        operands=1,
        params=_AXES,
        doc="log(sum(exp(x))) without overflow, a float",
        infer=_soft_extreme,
        gradient=_logsumexp_gradient,
        kernel=_reduction(_logsumexp),
    ),
    Operation(
        name="argmax",
        operands=1,
        params="axis, or null for all elements in order",
        doc="where the first of the largest is, `int64`",
        infer=_position,
        gradient=None,
        kernel=_search(_first(operator.gt)),
    ),
    Operation(
        name="argmin",
        operands=1,
        params="axis, or null for all elements in order",
        doc="where the first of the smallest is, `int64`",
        infer=_position,
        gradient=None,
        kernel=_search(_first(operator.lt)),
    ),
    Operation(
        name="softmax",
        operands=1,
        params="axis",
        doc="exp(x) divided by its sum along the axis, a float",
        infer=_along,
        gradient=_softmax_gradient,
        kernel=_normalised(logarithm=False),
    ),
    Operation(
        name="log_softmax",
        operands=1,
        params="axis",
        doc="the logarithm of `softmax`, a float",
        infer=_along,
        gradient=_log_softmax_gradient,
        kernel=_normalised(logarithm=True),
    ),
)
