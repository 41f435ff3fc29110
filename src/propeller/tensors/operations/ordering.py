"""Operations in the order of an axis: running sums, and where its elements are in the order of their size."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from propeller.tensors.operations.flat import groups_of
from propeller.tensors.operations.operation import Kernel, KernelFactory, Operation, OperationCall, Record
from propeller.tensors.shapes import Spec, TensorError, axis_of, sum_dtype

# What they yield --------------------------------------------------------------------------------------------


def _running(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = specs[0]
    axis_of(name, params, len(shape))
    return sum_dtype(dtype), shape


def _order(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    shape = specs[0][1]
    axis_of(name, params, len(shape))
    return "int64", shape


def _largest(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    count, axis = params
    shape = specs[0][1]
    at = axis_of(name, axis, len(shape))
    if type(count) is not int or not 0 <= count <= shape[at]:
        raise TensorError(f"{name}: there are no {count!r:.40} largest of {shape[at]} along axis {at}")
    return "int64", (*shape[:at], count, *shape[at + 1 :])


# Gradients --------------------------------------------------------------------------------------------------


def _cumsum_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    """The sum from each element to the end."""
    backwards = (*[slice(None)] * (call.params % up.ndim), slice(None, None, -1))
    return [record("cumsum", up[backwards], params=call.params)[backwards]]


# Kernels in plain Python ------------------------------------------------------------------------------------


def _along(axis_in: Callable[[Any], int], function: Callable[[list[Any], Any], Any]) -> KernelFactory:
    """Of a function of the elements along an axis that gives as many, or other elements along it."""

    def bind(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        sources = groups_of(specs[0][1], [axis_in(params)])
        targets = groups_of(out[1], [axis_in(params)])

        def kernel(x: list[Any]) -> list[Any]:
            result = [0] * sum(map(len, targets))
            for source, target in zip(sources, targets, strict=True):
                for at, value in zip(target, function([x[at] for at in source], params), strict=True):
                    result[at] = value
            return result

        return kernel

    return bind


def _positions(values: list[Any], *, largest_first: bool) -> list[int]:
    """Where the elements are in the order of their size; equal ones in their own order, NaN as the largest."""
    return sorted(
        range(len(values)),
        key=lambda at: (values[at] != values[at], values[at]),
        reverse=largest_first,
    )


# The operations ---------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="cumsum",
        operands=1,
        params="axis",
        doc="the sum from the first element along the axis to each, in the dtype of `sum`",
        infer=_running,
        gradient=_cumsum_gradient,
        kernel=_along(lambda axis: axis, lambda values, _axis: accumulate(values)),
    ),
    Operation(
        name="argsort",
        operands=1,
        params="axis",
        doc="where the elements along the axis are, from the smallest to the largest; equal ones in their order, NaN last; `int64`",
        infer=_order,
        gradient=None,
        kernel=_along(lambda axis: axis, lambda values, _axis: _positions(values, largest_first=False)),
    ),
    Operation(
        name="top_k",
        operands=1,
        params="`[count, axis]`",
        doc="where that many of the largest along the axis are, the largest first; equal ones in their order, NaN first; `int64`",
        infer=_largest,
        gradient=None,
        kernel=_along(
            lambda params: params[1],
            lambda values, params: _positions(values, largest_first=True)[: params[0]],
        ),
    ),
)
