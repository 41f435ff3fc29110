"""Each operation in NumPy. ``bind`` chooses once what a routine then calls many times, a bare ufunc where it can."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.random import (
    PCG64,
    Generator,
)  # by name: NumPy imports it late, and a confined task reads no files

from propeller.tensors import numpy_indexing as indexing
from propeller.tensors.routine import WEAK, Kernel
from propeller.tensors.shapes import Spec

_UFUNCS: dict[str, np.ufunc] = {
    "neg": np.negative,
    "abs": np.absolute,
    "sign": np.sign,
    "square": np.square,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "pow": np.float_power,
    "mod": np.remainder,
    "floordiv": np.floor_divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
}
_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_REDUCTIONS: dict[
    str, Callable[..., Any]
] = {  # NumPy's functions around these cost more than small arrays do
    "sum": np.add.reduce,
    "max": np.maximum.reduce,
    "min": np.minimum.reduce,
}


def bind(name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    """What does an operation that ``shapes.infer`` has checked, on arrays of these specs.

    The result is an array of the dtype ``out`` says, or a Python number where that is weak.
    """
    kernel = _choose(name, specs, params, out)
    if out[0] in WEAK:
        number = float if out[0] == "float" else int
        return lambda *values: number(kernel(*values))
    return kernel


def bind_into(name: str, specs: Sequence[Spec], out: Spec, position: int) -> Kernel | None:
    """``bind`` for an operation that may write over the operand at ``position``; None for those that cannot."""
    if not out[1] or (
        name != "relu" and name not in _UFUNCS
    ):  # NumPy makes scalars of arrays without dimensions
        return None
    if name == "relu":
        return lambda x: np.maximum(x, 0, out=x)
    kernel = _ufunc(_UFUNCS[name], specs, out)
    if len(specs) == 1:
        return lambda x: kernel(x, out=x)
    return (lambda x, y: kernel(x, y, out=y)) if position else (lambda x, y: kernel(x, y, out=x))


def _choose(name: str, specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    if name in _UFUNCS:
        return _ufunc(_UFUNCS[name], specs, out)
    if name in _COMPARISONS:
        return _COMPARISONS[name]
    if name in _REDUCTIONS:
        axes, keep = params
        chosen = None if axes is None else tuple(axes)
        dtype = {} if name in {"max", "min"} or out[0] in WEAK else {"dtype": np.dtype(out[0])}
        return partial(_REDUCTIONS[name], axis=chosen, keepdims=keep, **dtype)
    return _OTHERS[name](specs, params, None if out[0] in WEAK else np.dtype(out[0]))


def _ufunc(ufunc: np.ufunc, specs: Sequence[Spec], out: Spec) -> Kernel:
    """The bare function where NumPy's own result has the right dtype; else one that is told."""
    strong = {dtype for dtype, _ in specs if dtype not in WEAK}
    if out[0] in WEAK or (strong == {out[0]} and ufunc is not np.float_power):
        return ufunc
    if ufunc is np.float_power:
        return partial(np.power, dtype=np.dtype(out[0]), casting="unsafe")
    return partial(ufunc, dtype=np.dtype(out[0]), casting="unsafe")


def _relu(_specs: Sequence[Spec], _params: Any, _dtype: Any) -> Kernel:
    return lambda x: np.maximum(x, 0)


def _sigmoid(_specs: Sequence[Spec], _params: Any, dtype: Any) -> Kernel:
    def kernel(x: Any) -> Any:
        # 0.5 (1 + tanh(x / 2)) is the same, and overflows nowhere.
        half = np.multiply(x, 0.5, dtype=dtype, casting="unsafe") if dtype else x * 0.5
        return (np.tanh(half) + 1) * (half.dtype.type(0.5) if dtype else 0.5)

    return kernel


def _softmax(_specs: Sequence[Spec], axis: Any, dtype: Any) -> Kernel:
    def kernel(x: Any) -> Any:
        powers = np.exp(
            np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), dtype=dtype, casting="unsafe")
        )
        powers /= np.add.reduce(powers, axis=axis, keepdims=True)
        return powers

    return kernel


def _log_softmax(_specs: Sequence[Spec], axis: Any, dtype: Any) -> Kernel:
    def kernel(x: Any) -> Any:
        moved = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), dtype=dtype, casting="unsafe")
        moved -= np.log(np.add.reduce(np.exp(moved), axis=axis, keepdims=True))
        return moved

    return kernel


def _mean(specs: Sequence[Spec], params: Any, dtype: Any) -> Kernel:
    axes = tuple(range(len(specs[0][1]))) if params[0] is None else tuple(params[0])
    count = math.prod(specs[0][1][axis] for axis in axes)
    add = partial(np.add.reduce, axis=axes, keepdims=params[1], dtype=dtype)
    return lambda x: add(x) / np.float64(count) if dtype is None else np.divide(add(x), count, dtype=dtype)


def _where(_specs: Sequence[Spec], _params: Any, dtype: Any) -> Kernel:
    # As arrays: NumPy would refuse a Python number that does not fit the array beside it.
    return lambda condition, x, y: np.where(condition, np.asarray(x, dtype), np.asarray(y, dtype))


def _matmul(specs: Sequence[Spec], _params: Any, dtype: Any) -> Kernel:
    if specs[0][0] == specs[1][0]:
        return np.matmul
    return lambda x, y: np.matmul(x.astype(dtype, copy=False), y.astype(dtype, copy=False))


def _argmax(_specs: Sequence[Spec], axis: Any, _dtype: Any) -> Kernel:
    return partial(np.argmax, axis=axis)


def _argmin(_specs: Sequence[Spec], axis: Any, _dtype: Any) -> Kernel:
    return partial(np.argmin, axis=axis)


def _reshape(_specs: Sequence[Spec], shape: Any, _dtype: Any) -> Kernel:
    sizes = tuple(shape)
    return lambda x: np.reshape(x, sizes)


def _transpose(_specs: Sequence[Spec], axes: Any, _dtype: Any) -> Kernel:
    order = tuple(axes)
    return lambda x: np.transpose(x, order)


def _broadcast_to(_specs: Sequence[Spec], shape: Any, _dtype: Any) -> Kernel:
    sizes = tuple(shape)
    return lambda x: np.broadcast_to(x, sizes)


def _cast(specs: Sequence[Spec], _params: Any, dtype: Any) -> Kernel:
    if dtype.kind not in "iu" or not specs[0][0].startswith("float"):
        return lambda x: np.asarray(x).astype(dtype)
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max) + 1

    def kernel(x: Any) -> Any:
        # What processors make of a float that does not fit differs.
        whole = np.trunc(x)
        if not np.all((whole >= low) & (whole < high)):
            raise ValueError(f"a value does not fit {dtype}")
        return np.asarray(whole).astype(dtype)

    return kernel


def _concatenate(_specs: Sequence[Spec], axis: Any, dtype: Any) -> Kernel:
    return lambda *arrays: np.concatenate(arrays, axis=axis, dtype=dtype, casting="unsafe")


def _full(_specs: Sequence[Spec], params: Any, dtype: Any) -> Kernel:
    _, shape, value = params
    return lambda: np.full(tuple(shape), value, dtype)


def _arange(_specs: Sequence[Spec], count: Any, _dtype: Any) -> Kernel:
    return lambda: np.arange(count, dtype=np.int64)


def _random(_specs: Sequence[Spec], params: Any, _dtype: Any) -> Kernel:
    kind, shape, seed = params

    def kernel() -> Any:
        source = Generator(PCG64(seed))
        if kind == "permutation":
            return source.permutation(shape[0])
        if kind == "normal":
            return source.standard_normal(tuple(shape), dtype=np.float32)
        return source.random(tuple(shape), dtype=np.float32)

    return kernel


_OTHERS: dict[str, Callable[[Sequence[Spec], Any, Any], Kernel]] = {
    "relu": _relu,
    "sigmoid": _sigmoid,
    "mean": _mean,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "where": _where,
    "matmul": _matmul,
    "argmax": _argmax,
    "argmin": _argmin,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "cast": _cast,
    "cut": indexing.cut,
    "put": indexing.put,
    "take": indexing.take,
    "put_rows": indexing.put_rows,
    "pick": indexing.pick,
    "one_hot": indexing.one_hot,
    "concatenate": _concatenate,
    "full": _full,
    "arange": _arange,
    "random": _random,
}
