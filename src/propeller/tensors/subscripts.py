"""What stands between the brackets of ``x[…]``, as the operations that it is."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from propeller.tensors.literals import pack
from propeller.tensors.shapes import Spec, TensorError, elements, fits
from propeller.tensors.tape import Handle

_ALL = slice(None)


class Literal(NamedTuple):
    """An operand that is written down: its little-endian elements."""

    data: bytes
    spec: Spec


class Chosen(NamedTuple):
    """An operand that has the positions of a mask's true elements."""

    mask: Any


class Access(NamedTuple):
    """An operation on the array that is indexed, or on what the one before it gave."""

    name: str
    operands: Sequence[Any] = ()
    """Its further operands: arrays, numbers, literals, or what masks choose."""
    params: Any = None
    ahead: Sequence[Any] = ()
    """Operands that come before it."""


def plan_read(shape: tuple[int, ...], index: Any) -> list[Access]:
    """``x[index]``: positions, slices, ``None`` and ``...``; rows or columns by integers, or one column of each row; masks."""
    if isinstance(index, slice) and shape:  # a batch, at each step of training
        return [Access("cut", (), _cut_params(shape, [index]))]
    parts = _parts_of(shape, index)
    if not any(_is_many(part) for part in parts):
        return _cut(shape, parts)
    _drop_whole_axes(parts)
    if len(parts) == 1 and _is_mask(parts[0]) and len(parts[0].spec[1]) > 1:
        mask = _fitting_mask(parts[0], shape, 0)
        rank = len(mask.spec[1])
        rows = Access("reshape", params=[elements(shape[:rank]), *shape[rank:]])
        return [rows, Access("take", (Chosen(mask),))]
    parts = [
        Chosen(_fitting_mask(part, shape, axis)) if _is_mask(part) else part
        for axis, part in enumerate(parts)
    ]
    if len(parts) == 1:
        return [Access("take", (_indices(parts[0]),))]
    if len(parts) == 2 and _is_all(parts[0]):
        columns = _indices(parts[1])
        if isinstance(columns, Chosen) or len(columns.spec[1]) == 1:
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


def plan_write(spec: Spec, index: Any, value: Any) -> list[Access]:
    """What ``x[index] = value`` makes of x, an array of this spec."""
    shape = spec[1]
    parts = _parts_of(shape, index)
    value = Literal(*pack(value)) if isinstance(value, list | tuple) else value
    if not any(_is_many(part) for part in parts):
        if any(part is None for part in parts):
            raise TensorError("None makes an axis where an array is read, not where it is set")
        return [Access("put", (value,), _cut_params(shape, parts))]
    _drop_whole_axes(parts)
    if len(parts) == 1:
        if _is_mask(parts[0]):
            return _put_where(spec, parts[0], value)
        return [Access("put_rows", (_indices(parts[0]), value))]
    raise TensorError(
        "single elements are not set by integers in arrays, only rows are: add or subtract "
        "one_hot(columns, n), or choose with where(…)"
    )


def _put_where(spec: Spec, mask: Any, value: Any) -> list[Access]:
    dtype, shape = spec
    chosen = mask.spec[1]
    _fitting_mask(mask, shape, 0)
    rest = shape[len(chosen) :]
    if isinstance(value, int) and not isinstance(value, bool) and fits(value, dtype):
        value = Literal(*pack(value, dtype))  # or it would make int64 of uint8
    sizes = getattr(value, "spec", (dtype, ()))[1]
    if all(size == 1 for size in sizes[: max(len(sizes) - len(rest), 0)]):  # a value for every chosen one
        if isinstance(mask, Literal):
            spread = Literal(mask.data, ("bool", (*chosen, *[1] * len(rest))))
        else:
            spread = mask.reshape(*chosen, *[1] * len(rest)) if rest else mask
        return [Access("where", ahead=(spread, value))]
    rows = Access("put_rows", (Chosen(mask), value))
    if len(chosen) == 1:
        return [rows]
    return [
        Access("reshape", params=[elements(chosen), *rest]),
        rows,
        Access("reshape", params=list(shape)),
    ]


def _fitting_mask(mask: Any, shape: tuple[int, ...], axis: int) -> Any:
    """A mask that has the sizes of the array from an axis on."""
    sizes = shape[axis : axis + len(mask.spec[1])]
    if mask.spec[1] != sizes:
        raise TensorError(
            f"a mask of shape {list(mask.spec[1])} does not fit {list(sizes)}, the sizes from axis {axis} on"
        )
    return mask


def _parts_of(shape: tuple[int, ...], index: Any) -> list[Any]:
    """The parts of an index, with slices for ``...``."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if len(parts) > 1:  # a number that an operation gave is a position
        parts = [_position(part) for part in parts]
    parts = [_literal(part) if isinstance(part, list) else part for part in parts]
    dots = [at for at, part in enumerate(parts) if part is Ellipsis]
    axes = sum(
        len(part.spec[1]) if _is_mask(part) else part is not None and part is not Ellipsis for part in parts
    )
    if dots:
        parts[dots[0] : dots[0] + 1] = [_ALL] * (len(shape) - axes)
    if axes > len(shape):
        raise TensorError(f"too many indices for {len(shape)} dimensions")
    return parts


def _position(part: Any) -> Any:
    return operator.index(part) if isinstance(part, Handle) and not part.shape else part  # type: ignore[arg-type]


def _is_many(part: Any) -> bool:
    return isinstance(part, Handle | Literal | Chosen | range)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Handle | Literal) and part.spec[0] == "bool" and part.spec[1] != ()


def _is_all(part: Any) -> bool:
    return isinstance(part, slice) and part == _ALL


def _drop_whole_axes(parts: list[Any]) -> None:
    """Slices of everything at the end say nothing."""
    while len(parts) > 1 and _is_all(parts[-1]):
        parts.pop()


def _indices(part: Any) -> Any:
    return _literal(part) if isinstance(part, range) else part


def _literal(part: Any) -> Literal:
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
