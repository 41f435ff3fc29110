"""Operations on whole arrays: each takes specs and params, and gives a function on flat lists."""

import math
import operator
import random
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import Any

from propeller.tensors.flat import groups_of, offsets_of, spread, strides_of
from propeller.tensors.python_elementwise import larger, smaller
from propeller.tensors.shapes import Spec, elements


def _gathered(offsets: list[int]) -> Callable[[list[Any]], list[Any]]:
    return lambda x: [x[at] for at in offsets]


def _sum(values: list[Any]) -> Any:
    if not values or not isinstance(values[0], float):
        return sum(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # it is infinite, or no number
        return sum(values)


def _mean(values: list[Any]) -> float:
    return _sum(values) / len(values) if values else math.nan


def _beats(above: bool) -> Callable[[list[Any]], int]:
    """Where the first of the largest (or smallest) is; NaN comes before all."""

    def first(values: list[Any]) -> int:
        best = 0
        for at, value in enumerate(values):
            if value != value:  # noqa: PLR0124 - NaN is not itself
                return at
            if value > values[best] if above else value < values[best]:
                best = at
        return best

    return first


_largest, _smallest = _beats(above=True), _beats(above=False)


def _reduction(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def bind(specs: Sequence[Spec], params: Any, _out: Spec) -> Callable[..., Any]:
        shape = specs[0][1]
        axes = range(len(shape)) if params[0] is None else params[0]
        groups = groups_of(shape, axes)
        return lambda x: [function([x[at] for at in group]) for group in groups]

    return bind


def _chosen(first: Callable[[list[Any]], int]) -> Callable[..., Any]:
    def bind(specs: Sequence[Spec], axis: Any, out: Spec) -> Callable[..., Any]:
        return reduction(specs, [None if axis is None else [axis], False], out)

    reduction: Callable[..., Callable[..., Any]] = _reduction(first)
    return bind


def _normalised(logarithm: bool) -> Callable[..., Any]:
    def bind(specs: Sequence[Spec], axis: Any, _out: Spec) -> Callable[..., Any]:
        groups = groups_of(specs[0][1], [axis])

        def kernel(x: list[Any]) -> list[Any]:
            result = [0.0] * len(x)
            for group in groups:
                most = reduce(larger, [x[at] for at in group])
                powers = [math.exp(x[at] - most) for at in group]
                total = _sum(powers)
                shift = math.log(total)
                for at, power in zip(group, powers, strict=True):
                    result[at] = x[at] - most - shift if logarithm else power / total
            return result

        return kernel

    return bind


def _matmul(specs: Sequence[Spec], _params: Any, out: Spec) -> Callable[..., Any]:
    one, other = specs[0][1], specs[1][1]
    first = one if len(one) > 1 else (1, *one)
    second = other if len(other) > 1 else (*other, 1)
    rows, inner, columns = first[-2], first[-1], second[-1]
    stack = out[1][: len(out[1]) - (len(one) > 1) - (len(other) > 1)]

    def starts(shape: tuple[int, ...]) -> list[int]:
        lead = (1,) * (len(stack) - len(shape) + 2) + shape[:-2]
        block = shape[-2] * shape[-1]
        return [
            at * block
            for at in offsets_of(
                stack, [0 if s == 1 else n for s, n in zip(lead, strides_of(lead), strict=True)]
            )
        ]

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


def _where(specs: Sequence[Spec], _params: Any, out: Spec) -> Callable[..., Any]:
    shapes = [shape for _, shape in specs]

    def kernel(*values: list[Any]) -> list[Any]:
        parts = [spread(value, shape, out[1]) for value, shape in zip(values, shapes, strict=True)]
        return [x if chosen else y for chosen, x, y in zip(*parts, strict=True)]

    return kernel


def _as_is(_specs: Sequence[Spec], _params: Any, _out: Spec) -> Callable[..., Any]:
    return lambda x: x


def _transpose(specs: Sequence[Spec], axes: Any, out: Spec) -> Callable[..., Any]:
    strides = strides_of(specs[0][1])
    return _gathered(offsets_of(out[1], [strides[axis] for axis in axes]))


def _broadcast_to(specs: Sequence[Spec], _params: Any, out: Spec) -> Callable[..., Any]:
    return lambda x: spread(x, specs[0][1], out[1])


def _cut_offsets(shape: tuple[int, ...], params: Any) -> list[int]:
    strides = strides_of(shape)
    start, sizes, steps = 0, [], []
    for axis, stride in enumerate(strides):
        part = params[axis] if axis < len(params) else [0, shape[axis], 1]
        if isinstance(part, int):
            start += part * stride
        else:
            start += part[0] * stride
            sizes.append(part[1])
            steps.append(part[2] * stride)
    return offsets_of(sizes, steps, start)


def _cut(specs: Sequence[Spec], params: Any, _out: Spec) -> Callable[..., Any]:
    return _gathered(_cut_offsets(specs[0][1], params))


def _assigned(x: list[Any], places: list[int], values: list[Any]) -> list[Any]:
    changed = list(x)
    for at, value in zip(places, values, strict=True):
        changed[at] = value
    return changed


def _put(specs: Sequence[Spec], params: Any, _out: Spec) -> Callable[..., Any]:
    places = _cut_offsets(specs[0][1], params)
    sizes = tuple(part[1] for part in params if not isinstance(part, int)) + specs[0][1][len(params) :]
    return lambda x, value: _assigned(x, places, spread(value, specs[1][1], sizes))


def _row_offsets(shape: tuple[int, ...], indices: list[Any]) -> list[int]:
    count, width = shape[0], elements(shape[1:])
    places: list[int] = []
    for index in indices:
        if not -count <= index < count:
            raise IndexError(f"an index is outside {count} rows")
        places.extend(range(index % count * width, index % count * width + width))
    return places


def _take(specs: Sequence[Spec], _params: Any, _out: Spec) -> Callable[..., Any]:
    shape = specs[0][1]
    return lambda x, indices: [x[at] for at in _row_offsets(shape, indices)]


def _put_rows(specs: Sequence[Spec], _params: Any, _out: Spec) -> Callable[..., Any]:
    shape, where, value_shape = specs[0][1], specs[1][1], specs[2][1]

    def kernel(x: list[Any], indices: list[Any], value: list[Any]) -> list[Any]:
        return _assigned(x, _row_offsets(shape, indices), spread(value, value_shape, where + shape[1:]))

    return kernel


def _pick(specs: Sequence[Spec], _params: Any, _out: Spec) -> Callable[..., Any]:
    columns = specs[0][1][1]

    def kernel(x: list[Any], indices: list[Any]) -> list[Any]:
        if not all(-columns <= index < columns for index in indices):
            raise IndexError(f"an index is outside {columns} rows")
        return [x[row * columns + index % columns] for row, index in enumerate(indices)]

    return kernel


def _one_hot(_specs: Sequence[Spec], classes: Any, _out: Spec) -> Callable[..., Any]:
    def kernel(labels: list[Any]) -> list[Any]:
        if not all(0 <= label < classes for label in labels):
            raise IndexError(f"a label is outside {classes} classes")
        return [1.0 if column == label else 0.0 for label in labels for column in range(classes)]

    return kernel


def _concatenate(specs: Sequence[Spec], axis: Any, _out: Spec) -> Callable[..., Any]:
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


def _full(_specs: Sequence[Spec], params: Any, out: Spec) -> Callable[..., Any]:
    return lambda: [params[2]] * elements(out[1])


def _arange(_specs: Sequence[Spec], count: Any, _out: Spec) -> Callable[..., Any]:
    return lambda: list(range(count))


def _random(_specs: Sequence[Spec], params: Any, out: Spec) -> Callable[..., Any]:
    kind, _, seed = params
    count = elements(out[1])

    def kernel() -> list[Any]:
        source = random.Random(repr(seed))  # noqa: S311 - not for secrets
        if kind == "permutation":
            return source.sample(range(count), count)
        return [source.gauss(0, 1) if kind == "normal" else source.random() for _ in range(count)]

    return kernel


OTHERS: dict[str, Callable[[Sequence[Spec], Any, Spec], Callable[..., Any]]] = {
    "sum": _reduction(_sum),
    "mean": _reduction(_mean),
    "max": _reduction(lambda values: reduce(larger, values)),
    "min": _reduction(lambda values: reduce(smaller, values)),
    "argmax": _chosen(_largest),
    "argmin": _chosen(_smallest),
    "softmax": _normalised(logarithm=False),
    "log_softmax": _normalised(logarithm=True),
    "matmul": _matmul,
    "where": _where,
    "reshape": _as_is,
    "cast": _as_is,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "cut": _cut,
    "put": _put,
    "take": _take,
    "put_rows": _put_rows,
    "pick": _pick,
    "one_hot": _one_hot,
    "concatenate": _concatenate,
    "full": _full,
    "arange": _arange,
    "random": _random,
}
MOVES = {"reshape", "transpose", "broadcast_to", "cut", "take", "pick"}
"""Operations that only move elements: nothing to round."""
