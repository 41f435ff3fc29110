"""The machine in plain Python, for runtimes without host tensors: the same steps, correct and slow.

A value is the flat list of its elements in C order; float32 is rounded after each operation, as NumPy's is.
"""

import math
import operator
import random
import struct
import sys
from array import array as _buffer
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

from propeller.program.tensors.machine import WEAK, Kernel, StepMachine
from propeller.program.tensors.shapes import Spec, elements

_CODES = {"float32": "f", "float64": "d", "int64": "q", "uint8": "B", "bool": "B", "float": "d", "int": "q"}


class PythonMachine(StepMachine):
    """Steps in plain Python."""

    def bind(self, name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
        """A function on flat lists."""
        kernel = _choose(name, specs, params, out)
        if out[0] in WEAK or name in _MOVES:
            return lambda *values: kernel(*map(_listed, values))
        return lambda *values: _rounded(kernel(*map(_listed, values)), out[0])

    def pack(self, value: Any, spec: Spec) -> bytes:
        data = _buffer(_CODES[spec[0]], [int(v) for v in _listed(value)] if spec[0] == "bool" else _listed(value))
        if sys.byteorder == "big":
            data.byteswap()
        return data.tobytes()

    def unpack(self, data: bytes, spec: Spec) -> Any:
        values = _buffer(_CODES[spec[0]])
        values.frombytes(data)
        if sys.byteorder == "big":
            values.byteswap()
        return [bool(value) for value in values] if spec[0] == "bool" else values.tolist()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rounded(values: Iterable[Any], dtype: str) -> list[Any]:
    if dtype == "float32":
        try:
            return _buffer("f", values).tolist()
        except OverflowError:
            return [_single(value) for value in values]
    if dtype == "float64":
        return [float(value) for value in values]
    if dtype == "bool":
        return [bool(value) for value in values]
    return [int(value) for value in values]


def _single(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _choose(name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Callable[..., Any]:
    if name in _UNARY:
        function = _UNARY[name]
        return lambda x: list(map(function, x))
    if name in _BINARY:
        function = _BINARY[name]
        one, other = specs[0][1], specs[1][1]
        return lambda x, y: list(map(function, _spread(x, one, out[1]), _spread(y, other, out[1])))
    return _OTHERS[name](specs, params, out)


def _guard(function: Callable[..., Any], *errors: tuple[type[Exception], float]) -> Callable[..., Any]:
    def guarded(*values: Any) -> Any:
        try:
            return function(*values)
        except tuple(kind for kind, _ in errors) as error:
            return next(value for kind, value in errors if isinstance(error, kind))

    return guarded


def _divide(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if not x or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1, y)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def _relu(x: float) -> float:
    return x if x > 0 or x != x else 0


_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "square": lambda x: x * x,
    "exp": _guard(math.exp, (OverflowError, math.inf)),
    "log": _log,
    "sqrt": _guard(math.sqrt, (ValueError, math.nan)),
    "tanh": math.tanh,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "not": operator.not_,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _divide,
    "pow": _guard(math.pow, (OverflowError, math.inf), (ValueError, math.nan)),
    "mod": _guard(operator.mod, (ZeroDivisionError, 0)),
    "floordiv": _guard(operator.floordiv, (ZeroDivisionError, 0)),
    "maximum": max,
    "minimum": min,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
}


def _strides(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def _spread(values: list[Any], shape: tuple[int, ...], out: tuple[int, ...]) -> list[Any]:
    """The elements repeated as broadcasting says."""
    if shape == out:
        return values
    if len(values) == 1:
        return values * elements(out)
    if shape == out[len(out) - len(shape) :]:
        return values * elements(out[: len(out) - len(shape)])
    padded = (1,) * (len(out) - len(shape)) + shape
    strides = [0 if size == 1 else stride for size, stride in zip(padded, _strides(padded), strict=True)]
    return [values[at] for at in _offsets(out, strides)]


def _offsets(shape: Sequence[int], strides: Sequence[int], start: int = 0) -> list[int]:
    """Where the elements of a view are, in C order."""
    offsets = [start]
    for size, stride in zip(shape, strides, strict=True):
        steps = [stride * n for n in range(size)]
        offsets = [at + step for at in offsets for step in steps]
    return offsets


def _gathered(offsets: list[int]) -> Callable[[list[Any]], list[Any]]:
    return lambda x: [x[at] for at in offsets]


def _groups(shape: tuple[int, ...], axes: Iterable[int]) -> list[list[int]]:
    """For each element of a reduction's result, where its members are."""
    gone = sorted(axis % len(shape) for axis in axes)
    strides = _strides(shape)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    inside = _offsets([shape[axis] for axis in gone], [strides[axis] for axis in gone])
    outside = _offsets([shape[axis] for axis in kept], [strides[axis] for axis in kept])
    return [[at + step for step in inside] for at in outside]


def _mean(values: list[Any]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _sum(values: list[Any]) -> Any:
    return math.fsum(values) if values and isinstance(values[0], float) else sum(values)


def _reduction(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def bind(specs: Sequence[Spec], params: Any, _out: Spec) -> Callable[..., Any]:
        shape = specs[0][1]
        axes = range(len(shape)) if params[0] is None else params[0]
        groups = _groups(shape, axes)
        return lambda x: [function([x[at] for at in group]) for group in groups]

    return bind


def _chosen(first: Callable[..., Any]) -> Callable[..., Any]:
    def bind(specs: Sequence[Spec], axis: Any, _out: Spec) -> Callable[..., Any]:
        shape = specs[0][1]
        groups = _groups(shape, range(len(shape)) if axis is None else [axis])
        return lambda x: [first(range(len(group)), key=[x[at] for at in group].__getitem__) for group in groups]

    return bind


def _normalised(logarithm: bool) -> Callable[..., Any]:
    def bind(specs: Sequence[Spec], axis: Any, _out: Spec) -> Callable[..., Any]:
        groups = _groups(specs[0][1], [axis])

        def kernel(x: list[Any]) -> list[Any]:
            result = [0.0] * len(x)
            for group in groups:
                most = max(x[at] for at in group)
                powers = [math.exp(x[at] - most) for at in group]
                total = math.fsum(powers)
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
        return [at * block for at in _offsets(stack, [0 if s == 1 else n for s, n in zip(lead, _strides(lead), strict=True)])]

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
        spread = [_spread(value, shape, out[1]) for value, shape in zip(values, shapes, strict=True)]
        return [x if chosen else y for chosen, x, y in zip(*spread, strict=True)]

    return kernel


def _as_is(_specs: Sequence[Spec], _params: Any, _out: Spec) -> Callable[..., Any]:
    return lambda x: x


def _transpose(specs: Sequence[Spec], axes: Any, out: Spec) -> Callable[..., Any]:
    strides = _strides(specs[0][1])
    return _gathered(_offsets(out[1], [strides[axis] for axis in axes]))


def _broadcast_to(specs: Sequence[Spec], _params: Any, out: Spec) -> Callable[..., Any]:
    return lambda x: _spread(x, specs[0][1], out[1])


def _cut_offsets(shape: tuple[int, ...], params: Any) -> list[int]:
    strides = _strides(shape)
    start, sizes, steps = 0, [], []
    for axis, stride in enumerate(strides):
        part = params[axis] if axis < len(params) else [0, shape[axis], 1]
        if isinstance(part, int):
            start += part * stride
        else:
            start += part[0] * stride
            sizes.append(part[1])
            steps.append(part[2] * stride)
    return _offsets(sizes, steps, start)


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
    return lambda x, value: _assigned(x, places, _spread(value, specs[1][1], sizes))


def _row_offsets(shape: tuple[int, ...], indices: list[Any]) -> list[int]:
    count, width = shape[0], elements(shape[1:])
    places = []
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
        return _assigned(x, _row_offsets(shape, indices), _spread(value, value_shape, where + shape[1:]))

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


_OTHERS: dict[str, Callable[[Sequence[Spec], Any, Spec], Callable[..., Any]]] = {
    "sum": _reduction(_sum),
    "mean": _reduction(_mean),
    "max": _reduction(max),
    "min": _reduction(min),
    "argmax": _chosen(max),
    "argmin": _chosen(min),
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
_MOVES = {"reshape", "transpose", "broadcast_to", "cut", "take", "pick"}
"""Operations that only move elements: nothing to round."""
