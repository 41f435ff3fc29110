"""Functions that give the elements of arrays another arrangement, as NumPy has them."""

from collections.abc import Sequence
from typing import Any, Literal

from propeller.tensors.array import Array, record
from propeller.tensors.shapes import TensorError, axis_of

__all__ = [
    "broadcast_to",
    "concatenate",
    "expand_dims",
    "flip",
    "moveaxis",
    "pad",
    "repeat",
    "roll",
    "split",
    "stack",
    "swapaxes",
    "tile",
]

Axes = int | Sequence[int]


def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """The array repeated to a shape."""
    return record("broadcast_to", x, params=list(shape))


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """The arrays one after another along an axis."""
    return record("concatenate", *arrays, params=axis)


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """The arrays one after another along a new axis."""
    parts = list(arrays)
    at = axis_of("stack", axis, parts[0].ndim + 1) if parts else 0
    return concatenate([each.reshape(*each.shape[:at], 1, *each.shape[at:]) for each in parts], at)


def split(x: Array, sections: int | Sequence[int], axis: int = 0) -> list[Array]:
    """The array in parts along an axis.

    Args:
        x: The array.
        sections: How many parts of one size, or the positions where a part begins, but the first.
        axis: Along which.

    Raises:
        TensorError: The axis cannot be divided into so many parts.
    """
    at = axis_of("split", axis, x.ndim)
    size = x.shape[at]
    if isinstance(sections, int):
        if sections < 1 or size % sections:
            raise TensorError(
                f"split: axis {axis} of size {size} is not divided into {sections} parts of one size"
            )
        bounds = list(range(0, size + 1, size // sections)) if size else [0] * (sections + 1)
    else:
        bounds = [0, *sections, size]
    return [x[_along(at, slice(*bounds[n : n + 2]))] for n in range(len(bounds) - 1)]


def expand_dims(x: Array, axis: Axes) -> Array:
    """With a new axis of size 1 at each of these positions in the result."""
    given = _listed(axis)
    rank = x.ndim + len(given)
    new = _distinct("expand_dims", given, rank)
    sizes = iter(x.shape)
    return x.reshape([1 if at in new else next(sizes) for at in range(rank)])


def swapaxes(x: Array, one: int, other: int) -> Array:
    """With two axes in each other's place."""
    order = list(range(x.ndim))
    first, second = (axis_of("swapaxes", axis, x.ndim) for axis in (one, other))
    order[first], order[second] = order[second], order[first]
    return x.transpose(order)


def moveaxis(x: Array, source: Axes, destination: Axes) -> Array:
    """With axes at other positions; the others keep their order."""
    moved, places = (_distinct("moveaxis", _listed(axes), x.ndim) for axes in (source, destination))
    if len(moved) != len(places):
        raise TensorError("moveaxis: one destination for each axis")
    order = [axis for axis in range(x.ndim) if axis not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return x.transpose(order)


def flip(x: Array, axis: Axes | None = None) -> Array:
    """In reverse order along axes (None: along each)."""
    turned = range(x.ndim) if axis is None else _distinct("flip", _listed(axis), x.ndim)
    return x[tuple(slice(None, None, -1) if at in turned else slice(None) for at in range(x.ndim))]


def roll(x: Array, shift: Axes, axis: Axes | None = None) -> Array:
    """Moved on along axes (None: in the order of all elements); what goes over the end comes in at the beginning."""
    if axis is None:
        return roll(x.flatten(), shift, 0).reshape(x.shape)
    shifts, axes = _listed(shift), _listed(axis)
    if len(shifts) != len(axes):
        raise TensorError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for by, along in zip(shifts, axes, strict=True):
        at = axis_of("roll", along, x.ndim)
        moved = by % max(x.shape[at], 1)
        if moved:
            end = x.shape[at] - moved
            x = concatenate([x[_along(at, slice(end, None))], x[_along(at, slice(end))]], at)
    return x


def repeat(x: Array, repeats: int, axis: int | None = None) -> Array:
    """Each element so many times, one after another, along an axis (None: in one dimension)."""
    if axis is None:
        return repeat(x.flatten(), repeats, 0)
    at = axis_of("repeat", axis, x.ndim)
    apart = expand_dims(x, at + 1)
    spread = broadcast_to(apart, [*x.shape[: at + 1], repeats, *x.shape[at + 1 :]])
    return spread.reshape(*x.shape[:at], x.shape[at] * repeats, *x.shape[at + 1 :])


def tile(x: Array, repeats: Axes) -> Array:
    """The whole array so many times along each axis, the last ones where fewer are given."""
    times = _listed(repeats)
    rank = max(len(times), x.ndim)
    times = [1] * (rank - len(times)) + times
    sizes = [1] * (rank - x.ndim) + list(x.shape)
    apart = x.reshape([size for each in sizes for size in (1, each)])
    spread = broadcast_to(apart, [size for pair in zip(times, sizes, strict=True) for size in pair])
    return spread.reshape([many * size for many, size in zip(times, sizes, strict=True)])


def pad(
    x: Array,
    width: Any,
    mode: Literal["constant", "edge", "reflect"] = "constant",
    value: float = 0,
) -> Array:
    """With more elements around it.

    Args:
        x: The array.
        width: How many before and behind: one number, ``(before, behind)``, or such a pair for each axis.
        mode: What is there: ``value``, the nearest element, or the elements beside it mirrored.
        value: Where ``mode`` is ``"constant"``.

    Raises:
        TensorError: The widths are none, the mode is another, or there are not enough elements to be mirrored.
    """
    widths = _widths(width, x.ndim)
    if mode == "constant":
        sizes = [before + size + after for size, (before, after) in zip(x.shape, widths, strict=True)]
        inside = [[before, size, 1] for size, (before, _) in zip(x.shape, widths, strict=True)]
        return record("put", record("full", params=[x.dtype, sizes, value]), x, params=inside)
    if mode not in {"edge", "reflect"}:
        raise TensorError(f"pad: a mode is 'constant', 'edge' or 'reflect', not {mode!r:.40}")
    around = _edges if mode == "edge" else _mirrored
    for axis, (before, after) in enumerate(widths):
        if before or after:
            x = concatenate(around(x, axis, before, after), axis)
    return x


def _edges(x: Array, axis: int, before: int, after: int) -> list[Array]:
    if x.shape[axis] == 0:
        raise TensorError(f"pad: axis {axis} of size 0 has no edge")
    ends = []
    for part, count in ((slice(1), before), (slice(-1, None), after)):
        sizes = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
        ends.append(broadcast_to(x[_along(axis, part)], sizes))
    return [ends[0], x, ends[1]]


def _mirrored(x: Array, axis: int, before: int, after: int) -> list[Array]:
    size = x.shape[axis]
    if max(before, after) >= size:
        raise TensorError(
            f"pad: axis {axis} of size {size} has no {max(before, after)} elements to be mirrored"
        )
    turned = flip(x, axis)
    return [
        turned[_along(axis, slice(size - 1 - before, size - 1))],
        x,
        turned[_along(axis, slice(1, 1 + after))],
    ]


def _widths(width: Any, rank: int) -> list[tuple[int, int]]:
    given = (width, width) if isinstance(width, int) else tuple(width)
    if len(given) == 2 and all(isinstance(each, int) for each in given):
        given = (given,) * rank
    pairs = [(each, each) if isinstance(each, int) else tuple(each) for each in given]
    if len(pairs) != rank or not all(len(each) == 2 and min(each) >= 0 for each in pairs):
        raise TensorError(f"pad: {width!r:.80} is not how many go before and behind each of {rank} axes")
    return [(before, after) for before, after in pairs]


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    """An index that takes a part of one axis."""
    return (*[slice(None)] * axis, part)


def _listed(value: Axes) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _distinct(name: str, axes: Sequence[int], rank: int) -> list[int]:
    found = [axis_of(name, axis, rank) for axis in axes]
    if len(set(found)) != len(found):
        raise TensorError(f"{name}: {list(axes)} has an axis twice")
    return found
