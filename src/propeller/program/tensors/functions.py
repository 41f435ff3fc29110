"""The functions on arrays, as NumPy has them, and how arrays are made."""

import sys
from array import array as _buffer
from collections.abc import Sequence
from typing import Any, cast

from propeller.program.tensors import session
from propeller.program.tensors.array import TYPECODES, Array, Number
from propeller.program.tensors.shapes import FLOAT, INT, ITEM_BYTES, TensorError, elements, promote


def array(values: Any, dtype: str | None = None) -> Array:
    """An array of these numbers.

    Args:
        values: A number, nested lists of numbers of one length at each level, or an array (which is copied).
        dtype: Without it, ``float32`` for floats, ``int64`` for integers and ``bool`` for booleans.

    Raises:
        TensorError: The lists are ragged, hold something else, or an integer does not fit the dtype.
    """
    if isinstance(values, Array):
        return values.astype(dtype or values.dtype)
    flat: list[Number] = []
    shape = _measure(values, flat)
    kind = dtype or _kind(flat)
    if kind not in ITEM_BYTES:
        raise TensorError(f"there is no dtype {kind!r}; there are {', '.join(ITEM_BYTES)}")
    if not kind.startswith("float"):
        flat = [int(value) for value in flat]
    try:
        data = _buffer(TYPECODES[kind], flat)
    except (OverflowError, TypeError) as error:
        raise TensorError(f"array: a value does not fit {kind}: {error}") from None
    if sys.byteorder == "big":
        data.byteswap()
    return frombytes(data.tobytes(), kind, shape)


def frombytes(data: bytes, dtype: str, shape: Sequence[int]) -> Array:
    """An array of little-endian elements.

    Raises:
        TensorError: There are not as many bytes as the shape takes.
    """
    if len(data) != elements(shape) * ITEM_BYTES.get(dtype, 0):
        raise TensorError(f"array: {len(data)} bytes are not {elements(shape)} elements of {dtype}")
    return cast("Array", session.main().create(data, (dtype, tuple(shape))))


def full(shape: int | Sequence[int], value: Number, dtype: str = "float32") -> Array:
    """An array with one value everywhere."""
    return _record("full", params=[dtype, _sizes(shape), value])


def zeros(shape: int | Sequence[int], dtype: str = "float32") -> Array:
    """An array of zeros."""
    return full(shape, 0, dtype)


def ones(shape: int | Sequence[int], dtype: str = "float32") -> Array:
    """An array of ones."""
    return full(shape, 1, dtype)


def zeros_like(x: Array) -> Array:
    """Zeros with the shape and dtype of another array."""
    return full(x.shape, 0, x.dtype)


def ones_like(x: Array) -> Array:
    """Ones with the shape and dtype of another array."""
    return full(x.shape, 1, x.dtype)


def arange(count: int) -> Array:
    """The integers from 0 to below ``count``."""
    return _record("arange", params=count)


def exp(x: Any) -> Array:
    """E to the power of each element."""
    return _record("exp", x)


def log(x: Any) -> Array:
    """The natural logarithm of each element."""
    return _record("log", x)


def sqrt(x: Any) -> Array:
    """The square root of each element."""
    return _record("sqrt", x)


def square(x: Any) -> Array:
    """Each element times itself."""
    return _record("square", x)


def sign(x: Any) -> Array:
    """-1, 0 or 1 for each element."""
    return _record("sign", x)


def relu(x: Any) -> Array:
    """Each element, or 0 where it is negative."""
    return _record("relu", x)


def sigmoid(x: Any) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return _record("sigmoid", x)


def tanh(x: Any) -> Array:
    """The hyperbolic tangent of each element."""
    return _record("tanh", x)


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) divided by its sum along ``axis``, without overflow."""
    return _record("softmax", x, params=axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """The logarithm of ``softmax``, without loss of precision."""
    return _record("log_softmax", x, params=axis)


def matmul(x: Array, y: Array) -> Array:
    """The matrix product, as ``x @ y``."""
    return _record("matmul", x, y)


def maximum(x: Any, y: Any) -> Array:
    """The larger of two, element by element."""
    return _record("maximum", x, y)


def minimum(x: Any, y: Any) -> Array:
    """The smaller of two, element by element."""
    return _record("minimum", x, y)


def where(condition: Array, x: Any, y: Any) -> Array:
    """``x`` where the condition holds, else ``y``."""
    return _record("where", condition, x, y)


def one_hot(labels: Array, classes: int) -> Array:
    """A last axis of ``classes`` zeros with a one at each label; float32."""
    return _record("one_hot", labels, params=classes)


def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """The array repeated to a shape."""
    return _record("broadcast_to", x, params=list(shape))


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """The arrays one after another along an axis."""
    return _record("concatenate", *arrays, params=axis)


def stack(arrays: Sequence[Array]) -> Array:
    """The arrays as the rows of a new first axis."""
    return concatenate([each.reshape(1, *each.shape) for each in arrays])


class Random:
    """A stream of random arrays that depends on its seed only, not on when it is asked."""

    def __init__(self, seed: int) -> None:
        """Args: seed: any integer; its sign does not count."""
        self._seed, self._drawn = abs(seed), 0

    def normal(self, shape: int | Sequence[int] = ()) -> Array:
        """Standard normal, float32."""
        return self._draw("normal", shape)

    def uniform(self, shape: int | Sequence[int] = ()) -> Array:
        """From 0 to below 1, float32."""
        return self._draw("uniform", shape)

    def permutation(self, count: int) -> Array:
        """The integers below ``count`` in random order."""
        return self._draw("permutation", count)

    def _draw(self, kind: str, shape: int | Sequence[int]) -> Array:
        if session.tracing():
            raise TensorError(
                "a traced function would draw the same numbers each time: draw outside and pass them in"
            )
        self._drawn += 1
        return _record("random", params=[kind, _sizes(shape), [self._seed, self._drawn]])


def random(seed: int) -> Random:
    """A stream of random arrays."""
    return Random(seed)


def _record(name: str, *operands: Any, params: Any = None) -> Array:
    return cast("Array", session.record(name, operands, params))


def _sizes(shape: int | Sequence[int]) -> list[int]:
    return [shape] if isinstance(shape, int) else list(shape)


def _kind(flat: list[Number]) -> str:
    kinds = {
        "bool" if isinstance(value, bool) else INT if isinstance(value, int) else FLOAT for value in flat
    }
    if kinds == {"bool"}:
        return "bool"
    kind = FLOAT if not kinds or FLOAT in kinds else INT
    return promote(kind, "bool")


def _measure(values: Any, flat: list[Number]) -> tuple[int, ...]:
    """The shape of nested lists; their numbers go to ``flat``."""
    if isinstance(values, bool | int | float):
        flat.append(values)
        return ()
    if not isinstance(values, list | tuple):
        raise TensorError(f"array: {type(values).__name__} is not a number or a list of them")
    shapes = {_measure(each, flat) for each in values}
    if len(shapes) > 1:
        raise TensorError("array: the lists are not of one length")
    return (len(values), *(shapes.pop() if shapes else ()))
