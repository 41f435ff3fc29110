"""What stands between the brackets of ``x[…]``, as the operations that it is."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from propeller.tensors.literals import pack
from propeller.tensors.shapes import Spec, TensorError
from propeller.tensors.tape import Handle

_ALL = slice(None)


class Literal(NamedTuple):
    """An operand that is written down: its little-endian elements."""

    data: bytes
    spec: Spec


class Access(NamedTuple):
    """An operation on the array that is indexed, or on what the one before it gave."""

    name: str
    operands: Sequence[Any] = ()
    """Its further operands: arrays, numbers or literals."""
    params: Any = None


def plan_read(shape: tuple[int, ...], index: Any) -> list[Access]:
    """``x[index]``: positions, slices, ``None`` and ``...``; rows or columns by integers, or one column of each row."""
    if isinstance(index, slice) and shape:  # a batch, at each step of training
        return [Access("cut", (), _cut_params(shape, [index]))]
    parts = _parts_of(shape, index)
    if not any(_is_many(part) for part in parts):
        return _cut(shape, parts)
    while len(parts) > 1 and _is_all(parts[-1]):
        parts.pop()
    if len(parts) == 1:
        return [Access("take", (_indices(parts[0]),))]
    if len(parts) == 2 and _is_all(parts[0]):
        columns = _indices(parts[1])
        if len(columns.spec[1]) == 1:
            swapped = [1, 0, *range(2, len(shape))]
            return [
                Access("transpose", params=swapped),
                Access("take", (columns,)),
                Access("transpose", params=swapped),
            ]
    if len(parts) == 2 and _is_many(parts[0]) and _is_many(parts[1]):
        rows, columns = parts
        in_order = isinstance(rows, range) and rows == range(shape[0])
        chosen = [] if in_order else [Access("take", (_indices(rows),))]
        return [*chosen, Access("pick", (_indices(columns),))]
    raise TensorError(
        "integers in an array choose rows (x[rows]), columns (x[:, columns]) or one column of each row "
        "(x[range(len(x)), columns]), and nothing else beside them"
    )


def plan_write(shape: tuple[int, ...], index: Any, value: Any) -> Access:
    """What ``x[index] = value`` makes of x."""
    parts = _parts_of(shape, index)
    value = Literal(*pack(value)) if isinstance(value, list | tuple) else value
    if not any(_is_many(part) for part in parts):
        if any(part is None for part in parts):
            raise TensorError("None makes an axis where an array is read, not where it is set")
        return Access("put", (value,), _cut_params(shape, parts))
    if all(_is_all(part) for part in parts[1:]):
        return Access("put_rows", (_indices(parts[0]), value))
    raise TensorError(
        "single elements are not set by integers in arrays, only rows are: add or subtract "
        "one_hot(columns, n), or choose with where(…)"
    )


def _parts_of(shape: tuple[int, ...], index: Any) -> list[Any]:
    """The parts of an index, with slices for ``...``."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if len(parts) > 1:  # a number that an operation gave is a position
        parts = [_position(part) for part in parts]
    dots = [at for at, part in enumerate(parts) if part is Ellipsis]
    if dots:
        axes = sum(part is not None and part is not Ellipsis for part in parts)
        parts[dots[0] : dots[0] + 1] = [_ALL] * (len(shape) - axes)
    if sum(part is not None for part in parts) > len(shape):
        raise TensorError(f"too many indices for {len(shape)} dimensions")
    return parts


def _position(part: Any) -> Any:
    return operator.index(part) if isinstance(part, Handle) and not part.shape else part  # type: ignore[arg-type]


def _is_many(part: Any) -> bool:
    return isinstance(part, Handle | list | range)


def _is_all(part: Any) -> bool:
    return isinstance(part, slice) and part == _ALL


def _indices(part: Any) -> Any:
    if isinstance(part, Handle):
        return part
    return Literal(*pack(part, None if len(part) else "int64"))


def _cut(shape: tuple[int, ...], parts: list[Any]) -> list[Access]:
    params = _cut_params(shape, [part for part in parts if part is not None])
    cut = Access("cut", (), params)
    if len(params) == len(parts):
        return [cut]
    sizes: list[int] = []
    rest = iter(params)
    for part in parts:
        piece = [0, 1, 1] if part is None else next(rest)
        if isinstance(piece, list):
            sizes.append(piece[1])
    return [cut, Access("reshape", params=[*sizes, *shape[len(params) :]])]


def _cut_params(shape: tuple[int, ...], parts: list[Any]) -> list[Any]:
    """Positions and slices as ``cut`` takes them."""
    params: list[Any] = []
    for axis, (part, size) in enumerate(zip(parts, shape, strict=False)):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            params.append([start, len(range(start, stop, step)), step])
            continue
        try:
            position = operator.index(part)
        except TypeError:
            raise TensorError(
                f"an index is made of integers, slices and lists of integers, not a {type(part).__name__}"
            ) from None
        if not -size <= position < size:
            raise TensorError(f"index {position} is outside axis {axis} of size {size}")
        params.append(position % size)
    return params
