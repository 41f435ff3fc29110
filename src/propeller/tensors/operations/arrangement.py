"""Operations that make arrays, and those that give the same elements another shape, order or dtype."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from propeller.tensors.operations.flat import offsets_of, spread, strides_of
from propeller.tensors.operations.operation import Kernel, Operation, OperationCall, Record
from propeller.tensors.shapes import (
    CARRIED,
    HALVES,
    ITEM_BYTES,
    Spec,
    TensorError,
    axis_of,
    broadcast,
    elements,
    fits,
    is_floating,
    promote,
    shape_of,
)

# What they yield --------------------------------------------------------------------------------------------


def _dtype_of(name: str, dtype: Any) -> str:
    if dtype not in ITEM_BYTES:
        raise TensorError(f"{name}: there is no dtype {dtype!r}; there are {', '.join(ITEM_BYTES)}")
    return str(dtype)


def _reshaped(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    shape = shape_of(name, params)
    if elements(shape) != elements(specs[0][1]):
        raise TensorError(f"reshape: {list(specs[0][1])} has not as many elements as {list(shape)}")
    return specs[0][0], shape


def _transposed(_name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = specs[0]
    if not isinstance(params, list | tuple) or sorted(params) != list(range(len(shape))):
        raise TensorError(f"transpose: {params!r} is not an order of {len(shape)} axes")
    return dtype, tuple(shape[axis] for axis in params)


def _repeated(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    shape = shape_of(name, params)
    if broadcast(name, specs[0][1], shape) != shape:
        raise TensorError(f"broadcast_to: {list(specs[0][1])} does not fit into {list(shape)}")
    return specs[0][0], shape


def _converted(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    return _dtype_of(name, params), specs[0][1]


def _joined(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    if not specs:
        raise TensorError("concatenate takes one array or more")
    dtype, shape = specs[0]
    axis = axis_of(name, params, len(shape))
    total = 0
    for other, sizes in specs:
        dtype = promote(dtype, other)
        if len(sizes) != len(shape) or any(
            n != axis and one != two for n, (one, two) in enumerate(zip(sizes, shape, strict=True))
        ):
            raise TensorError(f"concatenate: {list(sizes)} does not join {list(shape)} along axis {axis}")
        total += sizes[axis]
    return dtype, (*shape[:axis], total, *shape[axis + 1 :])


def _filled(name: str, _specs: Sequence[Spec], params: Any) -> Spec:
    dtype, sizes, value = params
    if type(value) not in {bool, int, float} or not fits(value, _dtype_of(name, dtype)):
        raise TensorError(f"{name}: {value!r:.40} is no {dtype}")
    return dtype, shape_of(name, sizes)


def _counted(name: str, _specs: Sequence[Spec], params: Any) -> Spec:
    return "int64", shape_of(name, [params])


# Gradients --------------------------------------------------------------------------------------------------


def _transpose_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    axes = call.params
    return [up.transpose(*sorted(range(len(axes)), key=axes.__getitem__))]


def _cast_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    dtype = call.operands[0].dtype
    return [up.astype(CARRIED.get(dtype, dtype))]  # of what is only carried as what is computed with


def _concatenate_gradient(up: Any, call: OperationCall, _record: Record) -> Sequence[Any]:
    parts, at = [], 0
    axis = call.params % up.ndim
    for each in call.operands:
        size = each.shape[axis]
        parts.append(up[(*[slice(None)] * axis, slice(at, at + size))])
        at += size
    return parts


# Kernels in plain Python ------------------------------------------------------------------------------------


def _as_it_is(_specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    return lambda x: x


def _transpose(specs: Sequence[Spec], axes: Any, out: Spec) -> Kernel:
    strides = strides_of(specs[0][1])
    offsets = offsets_of(out[1], [strides[axis] for axis in axes])
    return lambda x: [x[at] for at in offsets]


def _broadcast_to(specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    return lambda x: spread(x, specs[0][1], out[1])


def _cast(specs: Sequence[Spec], dtype: Any, _out: Spec) -> Kernel:
    source = specs[0][0]
    if dtype not in {"int64", "uint8", "uint64"} or (
        not is_floating(source) and source not in HALVES and "uint64" not in {source, dtype}
    ):
        return lambda x: x

    def kernel(x: list[Any]) -> list[Any]:
        # What processors make of a float that does not fit differs.
        if not all(math.isfinite(value) and fits(int(value), dtype) for value in x):
            raise ValueError(f"a value does not fit {dtype}")
        return [int(value) for value in x]

    return kernel


def _concatenate(specs: Sequence[Spec], axis: Any, _out: Spec) -> Kernel:
    shape = specs[0][1]
    before = elements(shape[: axis % len(shape)])
    widths = [elements(sizes[axis % len(sizes) :]) for _, sizes in specs]

    def kernel(*arrays: list[Any]) -> list[Any]:
        return [
            value
            for row, (values, width) in product(range(before), zip(arrays, widths, strict=True))
            for value in values[row * width : row * width + width]
        ]

    return kernel


def _full(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    return lambda: [params[2]] * elements(out[1])


def _arange(_specs: Sequence[Spec], count: Any, _out: Spec) -> Kernel:
    return lambda: list(range(count))


# The operations ---------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="reshape",
        operands=1,
        params="shape",
        doc="the same elements, as many",
        infer=_reshaped,
        gradient=lambda up, call, _record: [up.reshape(call.operands[0].shape)],
        kernel=_as_it_is,
        view=True,
        moves=True,
    ),
    Operation(
        name="transpose",
        operands=1,
        params="axes in their new order",
        doc="the same elements",
        infer=_transposed,
        gradient=_transpose_gradient,
        kernel=_transpose,
        view=True,
        moves=True,
    ),
    Operation(
        name="broadcast_to",
        operands=1,
        params="shape",
        doc="the elements, repeated",
        infer=_repeated,
        gradient=lambda up, _call, _record: [up],
        kernel=_broadcast_to,
        view=True,
        moves=True,
    ),
    Operation(
        name="cast",
        operands=1,
        params="dtype",
        doc="the elements in that dtype; floats lose their fraction in integers, and must fit, as must what goes into and out of `uint64`",
        infer=_converted,
        gradient=_cast_gradient,
        kernel=_cast,
    ),
    Operation(
        name="concatenate",
        operands=None,
        params="axis",
        doc="one after another, in the largest dtype",
        infer=_joined,
        gradient=_concatenate_gradient,
        kernel=_concatenate,
    ),
    Operation(
        name="full",
        operands=0,
        params="`[dtype, shape, value]`",
        doc="the value everywhere",
        infer=_filled,
        gradient=None,
        kernel=_full,
    ),
    Operation(
        name="arange",
        operands=0,
        params="count",
        doc="the integers from 0 on, `int64`",
        infer=_counted,
        gradient=None,
        kernel=_arange,
    ),
)
