"""Each operation in NumPy: a kernel is chosen once, and called many times where steps are kept; a bare ufunc where that does."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.random import (
    PCG64,
    Generator,
)  # by name: NumPy imports it late, and a confined task reads no files

from propeller.tensors import numpy_indexing, numpy_ordering, numpy_windows
from propeller.tensors.numpy_casts import cast
from propeller.tensors.numpy_erf import erf
from propeller.tensors.operations import OPERATIONS, Kernel, KernelFactory
from propeller.tensors.shapes import HALVES, WEAK, Spec


def bind(name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    """The kernel of an operation that ``infer`` has checked, for arrays of these specs.

    Its result is an array of the dtype that ``out`` says, or a Python number where that is weak.
    """
    kernel = KERNELS[name](specs, params, out)
    if out[0] in WEAK:
        number = float if out[0] == "float" else int
        return lambda *values: number(kernel(*values))
    return kernel


def bind_into(name: str, specs: Sequence[Spec], params: Any, out: Spec, position: int) -> Kernel | None:
    """``bind`` for an operation that may write over the operand at ``position``; None for those that cannot."""
    if not out[1]:  # NumPy makes scalars of arrays without dimensions
        return None
    if name == "relu":
        return lambda x: np.maximum(x, 0, out=x)
    if name == "put" and position == 0:
        return numpy_indexing.put_into(params)
    if name not in _UFUNCS:
        return None
    kernel = _arithmetic(_UFUNCS[name], specs, None, out)
    if len(specs) == 1:
        return lambda x: kernel(x, out=x)
    return (lambda x, y: kernel(x, y, out=y)) if position else (lambda x, y: kernel(x, y, out=x))


def _dtype(out: Spec) -> Any:
    """NumPy's dtype of a result; None for a weak number."""
    return None if out[0] in WEAK else np.dtype(out[0])


# Element by element -----------------------------------------------------------------------------------------


def _arithmetic(ufunc: np.ufunc, specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    """The bare ufunc where NumPy's own result has the right dtype; else one that is told."""
    strong = {dtype for dtype, _ in specs if dtype not in WEAK}
    if out[0] in WEAK or (strong == {out[0]} and ufunc is not np.float_power):
        return ufunc
    if ufunc is np.float_power:
        return partial(np.power, dtype=np.dtype(out[0]), casting="unsafe")
    return partial(ufunc, dtype=np.dtype(out[0]), casting="unsafe")


def _comparison(ufunc: np.ufunc, _specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    return ufunc


def _relu(_specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    return lambda x: np.maximum(x, 0)


def _sigmoid(_specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)

    def kernel(x: Any) -> Any:
        # 0.5 (1 + tanh(x / 2)) is the same, and overflows nowhere.
        half = np.multiply(x, 0.5, dtype=dtype, casting="unsafe") if dtype else x * 0.5
        return (np.tanh(half) + 1) * (half.dtype.type(0.5) if dtype else 0.5)

    return kernel


def _softplus(_specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)

    def kernel(x: Any) -> Any:
        given = np.atleast_1d(np.asarray(x, dtype))
        tail = np.abs(given)  # log(1 + exp(-|x|)) overflows nowhere
        np.negative(tail, out=tail)
        np.exp(tail, out=tail)
        np.log1p(tail, out=tail)
        tail += np.maximum(given, 0)
        return tail.reshape(out[1])

    return kernel


def _erf(_specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)
    return lambda x: erf(np.atleast_1d(np.asarray(x, dtype))).reshape(out[1])


def _where(_specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)
    # As arrays: NumPy would refuse a Python number that does not fit the array beside it.
    return lambda condition, x, y: np.where(condition, np.asarray(x, dtype), np.asarray(y, dtype))


# Along axes -------------------------------------------------------------------------------------------------


def _reduction(function: Callable[..., Any], _specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
    axes, keep = params
    return partial(function, axis=None if axes is None else tuple(axes), keepdims=keep)


def _sum(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    # NumPy's functions around its ufuncs' reduce cost more than small arrays do.
    reduction = _reduction(np.add.reduce, specs, params, out)
    return reduction if out[0] in WEAK else partial(reduction, dtype=np.dtype(out[0]))


def _mean(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)
    axes = tuple(range(len(specs[0][1]))) if params[0] is None else tuple(params[0])
    count = math.prod(specs[0][1][axis] for axis in axes)
    add = partial(np.add.reduce, axis=axes, keepdims=params[1], dtype=dtype)
    return lambda x: add(x) / np.float64(count) if dtype is None else np.divide(add(x), count, dtype=dtype)


def _logsumexp(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)
    axes = tuple(range(len(specs[0][1]))) if params[0] is None else tuple(params[0])

    def kernel(x: Any) -> Any:
        most = np.maximum.reduce(x, axis=axes, keepdims=True)
        most = np.where(np.isfinite(most), most, 0)
        powers = np.exp(np.subtract(x, most, dtype=dtype, casting="unsafe"))
        total = np.log(np.add.reduce(powers, axis=axes, keepdims=params[1]))
        return np.add(total, most.reshape(total.shape), dtype=dtype, casting="unsafe")

    return kernel


def _softmax(_specs: Sequence[Spec], axis: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)

    def kernel(x: Any) -> Any:
        powers = np.exp(
            np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), dtype=dtype, casting="unsafe")
        )
        powers /= np.add.reduce(powers, axis=axis, keepdims=True)
        return powers

    return kernel


def _log_softmax(_specs: Sequence[Spec], axis: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)

    def kernel(x: Any) -> Any:
        moved = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), dtype=dtype, casting="unsafe")
        moved -= np.log(np.add.reduce(np.exp(moved), axis=axis, keepdims=True))
        return moved

    return kernel


def _matmul(specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    if specs[0][0] == specs[1][0]:
        return np.matmul
    dtype = np.dtype(out[0])
    return lambda x, y: np.matmul(x.astype(dtype, copy=False), y.astype(dtype, copy=False))


# Making and arranging ---------------------------------------------------------------------------------------


def _reshape(_specs: Sequence[Spec], shape: Any, _out: Spec) -> Kernel:
    sizes = tuple(shape)
    return lambda x: np.reshape(x, sizes)


def _transpose(_specs: Sequence[Spec], axes: Any, _out: Spec) -> Kernel:
    order = tuple(axes)
    return lambda x: np.transpose(x, order)


def _broadcast_to(_specs: Sequence[Spec], shape: Any, _out: Spec) -> Kernel:
    sizes = tuple(shape)
    return lambda x: np.broadcast_to(x, sizes)


def _concatenate(_specs: Sequence[Spec], axis: Any, out: Spec) -> Kernel:
    dtype = _dtype(out)
    return lambda *arrays: np.concatenate(arrays, axis=axis, dtype=dtype, casting="unsafe")


def _full(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    if out[0] in HALVES:
        narrow = cast([("float64", out[1])], None, out)
        return lambda: narrow(np.full(out[1], params[2], np.float64))
    dtype = np.dtype(out[0])
    return lambda: np.full(out[1], params[2], dtype)


def _arange(_specs: Sequence[Spec], count: Any, _out: Spec) -> Kernel:
    return lambda: np.arange(count, dtype=np.int64)


def _random(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    kind, _, seed = params
    return lambda: _drawn(Generator(PCG64(seed)), kind, out[1])


def _draw(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    kind, _ = params

    def kernel(key: Any, fold: Any) -> Any:
        seed = np.array([*key, fold], np.int64).view(np.uint64)
        return _drawn(Generator(PCG64(seed)), kind, out[1])

    return kernel


def _drawn(source: Generator, kind: str, shape: tuple[int, ...]) -> Any:
    if kind == "permutation":
        return source.permutation(shape[0])
    if kind == "key":
        return source.integers(0, 1 << 63, shape)
    if kind == "normal":
        return source.standard_normal(shape, dtype=np.float32)
    return source.random(shape, dtype=np.float32)


# The kernels ------------------------------------------------------------------------------------------------

_UFUNCS: dict[str, np.ufunc] = {
    name: getattr(np, operation.ufunc) for name, operation in OPERATIONS.items() if operation.ufunc
}

_COMPARISONS: dict[str, np.ufunc] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}

KERNELS: dict[str, KernelFactory] = {
    **{name: partial(_arithmetic, ufunc) for name, ufunc in _UFUNCS.items()},
    **{name: partial(_comparison, ufunc) for name, ufunc in _COMPARISONS.items()},
    "relu": _relu,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "erf": _erf,
    "where": _where,
    "matmul": _matmul,
    "sum": _sum,
    "mean": _mean,
    "max": partial(_reduction, np.maximum.reduce),
    "min": partial(_reduction, np.minimum.reduce),
    "logsumexp": _logsumexp,
    "argmax": lambda _specs, axis, _out: partial(np.argmax, axis=axis),
    "argmin": lambda _specs, axis, _out: partial(np.argmin, axis=axis),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "cast": cast,
    "concatenate": _concatenate,
    "full": _full,
    "arange": _arange,
    "random": _random,
    "draw": _draw,
    **numpy_indexing.KERNELS,
    **numpy_ordering.KERNELS,
    **numpy_windows.KERNELS,
}
"""The kernel of every operation, from its specs and params."""
