"""The functions on arrays, as NumPy has them, and how arrays are made."""

from collections.abc import Sequence
from typing import Any

from propeller.tensors.array import Array, axes_of, create, literal, record
from propeller.tensors.encoding import Number
from propeller.tensors.literals import is_numpy, pack_numpy
from propeller.tensors.shapes import TensorError, dtype_name

__all__ = [
    "arange",
    "array",
    "cos",
    "erf",
    "exp",
    "expm1",
    "eye",
    "full",
    "isnan",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "matmul",
    "maximum",
    "minimum",
    "norm",
    "one_hot",
    "ones",
    "ones_like",
    "sign",
    "sin",
    "softmax",
    "sqrt",
    "square",
    "tanh",
    "where",
    "zeros",
    "zeros_like",
]


def array(values: Any, dtype: Any = None) -> Array:
    """An array of these numbers.

    Args:
        values: A number, nested lists of numbers of one length at each level, or an array (which is copied). Where NumPy is, also
            its arrays and scalars.
        dtype: Without it, ``float32`` for floats, ``int64`` for integers and ``bool`` for booleans. NumPy's float64 stays one.

    Raises:
        TensorError: The lists are ragged, hold something else, or an integer does not fit the dtype.
    """
    if isinstance(values, Array):
        return values.astype(dtype or values.dtype)
    if is_numpy(values):
        made = create(*pack_numpy(values))
        return made if dtype is None or dtype_name(dtype) == made.dtype else made.astype(dtype)
    return literal(values, dtype)


def full(shape: int | Sequence[int], value: Number, dtype: Any = "float32") -> Array:
    """An array with one value everywhere."""
    if isinstance(dtype, int):
        raise TensorError(f"{dtype} is no dtype; a shape of several sizes is one argument: zeros((2, 3))")
    return record("full", params=[dtype_name(dtype), sizes_of(shape), value])


def zeros(shape: int | Sequence[int], dtype: Any = "float32") -> Array:
    """An array of zeros."""
    return full(shape, 0, dtype)


def ones(shape: int | Sequence[int], dtype: Any = "float32") -> Array:
    """An array of ones."""
    return full(shape, 1, dtype)


def zeros_like(x: Array) -> Array:
    """Zeros with the shape and dtype of another array."""
    return full(x.shape, 0, x.dtype)


def ones_like(x: Array) -> Array:
    """Ones with the shape and dtype of another array."""
    return full(x.shape, 1, x.dtype)


def arange(start: int, stop: int | None = None, step: int = 1) -> Array:
    """The integers from ``start`` to below ``stop``, as ``range`` has them; of one argument, from 0 to below it."""
    try:
        numbers = range(start) if stop is None else range(start, stop, step)
    except (TypeError, ValueError) as error:
        raise TensorError(f"arange: {error}") from None
    counted = record("arange", params=len(numbers))
    return counted if numbers == range(len(numbers)) else counted * numbers.step + numbers.start


def eye(count: int) -> Array:
    """The identity matrix, float32."""
    return one_hot(arange(count), count)


def exp(x: Any) -> Array:
    """E to the power of each element."""
    return record("exp", x)


def expm1(x: Any) -> Array:
    """exp(x) - 1 for each element, exact near 0 too."""
    return record("expm1", x)


def log(x: Any) -> Array:
    """The natural logarithm of each element."""
    return record("log", x)


def log1p(x: Any) -> Array:
    """The natural logarithm of 1 + x for each element, exact near 0 too."""
    return record("log1p", x)


def sqrt(x: Any) -> Array:
    """The square root of each element."""
    return record("sqrt", x)


def square(x: Any) -> Array:
    """Each element times itself."""
    return record("square", x)


def sign(x: Any) -> Array:
    """-1, 0 or 1 for each element."""
    return record("sign", x)


def isnan(x: Array) -> Array:
    """Whether each element is NaN."""
    return x != x  # noqa: PLR0124 - only NaN differs from itself


def sin(x: Any) -> Array:
    """The sine of each element."""
    return record("sin", x)


def cos(x: Any) -> Array:
    """The cosine of each element."""
    return record("cos", x)


def tanh(x: Any) -> Array:
    """The hyperbolic tangent of each element."""
    return record("tanh", x)


def erf(x: Any) -> Array:
    """The error function of each element."""
    return record("erf", x)


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) divided by its sum along ``axis``, without overflow."""
    return record("softmax", x, params=axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """The logarithm of ``softmax``, without loss of precision."""
    return record("log_softmax", x, params=axis)


def logsumexp(x: Array, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Array:
    """log(sum(exp(x))) along ``axis`` (None: of all elements), without overflow."""
    return record("logsumexp", x, params=[axes_of(axis), keepdims])


def norm(
    x: Array,
    ord: float = 2,  # noqa: A002 - NumPy's name
    axis: int | Sequence[int] | None = None,
    *,
    keepdims: bool = False,
) -> Array:
    """The norm of the elements along ``axis`` (None: of all) as one vector, whatever its shape.

    Args:
        x: The elements.
        ord: 2 for the root of the sum of squares, 1 for the sum of the elements without signs, ``float("inf")`` for the largest of these.
        axis: One axis or several.
        keepdims: Whether these stay, of size 1.

    Raises:
        TensorError: There is no such norm here.
    """
    if ord == 1:
        return abs(x).sum(axis, keepdims=keepdims)
    if ord == float("inf"):
        return abs(x).max(axis, keepdims=keepdims)
    if ord != 2:
        raise TensorError(f"norm: ord is 1, 2 or float('inf'), not {ord!r:.40}")
    total = record("square", x).sum(axis, keepdims=keepdims)
    zero = total == 0  # where the root's gradient is infinite; of the norm 0 is one
    return where(zero, 0.0, sqrt(where(zero, 1.0, total)))


def matmul(x: Array, y: Array) -> Array:
    """The matrix product, as ``x @ y``."""
    return record("matmul", x, y)


def maximum(x: Any, y: Any) -> Array:
    """The larger of two, element by element."""
    return record("maximum", x, y)


def minimum(x: Any, y: Any) -> Array:
    """The smaller of two, element by element."""
    return record("minimum", x, y)


def where(condition: Array, x: Any, y: Any) -> Array:
    """``x`` where the condition holds, else ``y``."""
    return record("where", condition, x, y)


def one_hot(labels: Array, classes: int) -> Array:
    """A last axis of ``classes`` zeros with a one at each label; float32."""
    return record("one_hot", labels, params=classes)


def sizes_of(shape: int | Sequence[int]) -> list[int]:
    """A shape as operations take it; one size may be given alone."""
    return [shape] if isinstance(shape, int) else list(shape)
