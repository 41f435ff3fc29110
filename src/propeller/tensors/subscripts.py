"""What stands between the brackets of ``x[…]``, as the operations that it is."""

import operator
from typing import Any

from propeller.tensors import session
from propeller.tensors.literals import literal
from propeller.tensors.shapes import TensorError
from propeller.tensors.tape import Handle

_ALL = slice(None)


def get(x: Any, index: Any) -> Any:
    """``x[index]``: positions, slices, ``None`` and ``...``; rows or columns by integers, or one column of each row."""
    given = _given(x, index)
    if not any(_many(part) for part in given):
        return _cut(x, given)
    while len(given) > 1 and _is_all(given[-1]):
        given.pop()
    if len(given) == 1:
        return session.record("take", (x, _array(given[0])))
    if len(given) == 2 and _is_all(given[0]):
        turn = [1, 0, *range(2, x.ndim)]
        turned = session.record("transpose", (x,), turn)
        columns = _array(given[1])
        if columns.ndim == 1:
            taken = session.record("take", (turned, columns))
            return session.record("transpose", (taken,), turn)
    if len(given) == 2 and _many(given[0]) and _many(given[1]):
        rows, columns = given
        in_order = isinstance(rows, range) and rows == range(len(x))
        chosen = x if in_order else session.record("take", (x, _array(rows)))
        return session.record("pick", (chosen, _array(columns)))
    raise TensorError(
        "integers in an array choose rows (x[rows]), columns (x[:, columns]) or one column of each row "
        "(x[range(len(x)), columns]), and nothing else beside them"
    )


def put(x: Any, index: Any, value: Any) -> Any:
    """The array that ``x[index] = value`` makes of x."""
    given = _given(x, index)
    value = literal(value) if isinstance(value, list | tuple) else value
    if not any(_many(part) for part in given):
        if any(part is None for part in given):
            raise TensorError("None makes an axis where an array is read, not where it is set")
        return session.record("put", (x, value), _parts(x.shape, given))
    if all(_is_all(part) for part in given[1:]):
        return session.record("put_rows", (x, _array(given[0]), value))
    raise TensorError(
        "single elements are not set by integers in arrays, only rows are: add or subtract "
        "one_hot(columns, n), or choose with where(…)"
    )


def _given(x: Any, index: Any) -> list[Any]:
    """The parts of an index, with slices for ``...``."""
    given = list(index) if isinstance(index, tuple) else [index]
    if len(given) > 1:  # a number that an operation gave is a position
        given = [_number(part) for part in given]
    places = [at for at, part in enumerate(given) if part is Ellipsis]
    if places:
        axes = sum(part is not None and part is not Ellipsis for part in given)
        given[places[0] : places[0] + 1] = [_ALL] * (x.ndim - axes)
    if sum(part is not None for part in given) > x.ndim:
        raise TensorError(f"too many indices for {x.ndim} dimensions")
    return given


def _number(part: Any) -> Any:
    return operator.index(part) if isinstance(part, Handle) and not part.shape else part  # type: ignore[arg-type]


def _many(part: Any) -> bool:
    return isinstance(part, Handle | list | range)


def _is_all(part: Any) -> bool:
    return isinstance(part, slice) and part == _ALL


def _array(part: Any) -> Any:
    if isinstance(part, Handle):
        return part
    return literal(part, None if len(part) else "int64")


def _cut(x: Any, given: list[Any]) -> Any:
    parts = _parts(x.shape, [part for part in given if part is not None])
    result = session.record("cut", (x,), parts)
    if len(parts) == len(given):
        return result
    shape: list[int] = []
    left = iter(parts)
    for part in given:
        piece = [0, 1, 1] if part is None else next(left)
        if isinstance(piece, list):
            shape.append(piece[1])
    return session.record("reshape", (result,), [*shape, *x.shape[len(parts) :]])


def _parts(shape: tuple[int, ...], given: list[Any]) -> list[Any]:
    """Positions and slices as ``cut`` takes them."""
    parts: list[Any] = []
    for axis, (part, size) in enumerate(zip(given, shape, strict=False)):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            parts.append([start, len(range(start, stop, step)), step])
            continue
        try:
            place = operator.index(part)
        except TypeError:
            raise TensorError(
                f"an index is made of integers, slices and lists of integers, not a {type(part).__name__}"
            ) from None
        if not -size <= place < size:
            raise TensorError(f"index {place} is outside axis {axis} of size {size}")
        parts.append(place % size)
    return parts
