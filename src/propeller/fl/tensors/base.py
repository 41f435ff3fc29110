"""What a model is: an ordered mapping of names to numpy arrays, and what two of them must share."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from propeller.fl.tensors.dtypes import (
    DTYPES,
    Array,
    all_finite,
    bounds,
    extremes,
    is_floating,
    name_of,
    without_loss,
)
from propeller.tensors.limits import check_count, check_elements, check_name
from propeller.tensors.shapes import MAX_RANK, TensorError

Tensors = dict[str, Array]
"""Names to arrays, in the model's own order; 0-d arrays are scalars."""

Shapes = dict[str, tuple[int, ...]]
"""Names to the shapes of arrays, in the model's own order."""


FREE = (-1,)
"""In the place of a shape: that of a vector of any length."""


class TensorSpec(NamedTuple):
    """What a tensor is but for its numbers: a dtype by its name in ``DTYPES``, and a shape."""

    dtype: str
    shape: tuple[int, ...]


Specs = dict[str, TensorSpec]
"""Names to dtypes and shapes, in the model's own order."""


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_array(name: str, array: Array, *, finite: bool = True) -> None:
    """Refuse an array of a dtype that models do not have, or (``finite``) one that holds NaN or an infinity.

    Raises:
        TensorError: naming the tensor.
    """
    try:
        name_of(array.dtype)
    except TensorError as error:
        raise TensorError(str(error), name) from None
    if array.ndim > MAX_RANK:
        raise TensorError(f"has {array.ndim} dimensions, more than the limit of {MAX_RANK}", name)
    if finite and not all_finite(array):
        raise TensorError("holds NaN or an infinity; every number must be finite", name)


def check_tensors(tensors: Tensors) -> None:
    """Check a whole model that did not come out of a codec.

    Raises:
        TensorError: naming the tensor that is wrong.
    """
    check_count(len(tensors))
    check_elements(array.size for array in tensors.values())
    for name, array in tensors.items():
        check_array(check_name(name), array)


def shapes_of(tensors: Mapping[str, _Shaped]) -> Shapes:
    """The names and shapes of a model, or of its specs."""
    return {name: each.shape for name, each in tensors.items()}


def specs_of(tensors: Tensors) -> Specs:
    """The names, dtypes and shapes of a model."""
    return {name: TensorSpec(name_of(array.dtype), array.shape) for name, array in tensors.items()}


def check_shapes(tensors: Mapping[str, _Shaped], expected: Shapes, owner: str = "the base model") -> None:
    """Check that tensors have exactly the expected names and shapes, in any order, of any dtype.

    Args:
        tensors: what is checked, an update for example, or its specs.
        expected: the names and shapes of what they must fit; ``FREE`` fits vectors of any length.
        owner: what the errors call that.

    Raises:
        TensorError: naming the tensor, with both shapes where they differ.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise TensorError(f"is missing; {owner} has it with shape {format_shape(shape)}", name)
        if shape == FREE:
            if len(tensors[name].shape) != 1:
                raise TensorError(
                    f"has shape {format_shape(tensors[name].shape)}; of any length, it is still a vector",
                    name,
                )
        elif tensors[name].shape != shape:
            raise TensorError(
                f"has shape {format_shape(tensors[name].shape)}, {owner} has {format_shape(shape)}", name
            )
    for name in tensors:
        if name not in expected:
            raise TensorError(f"is not in {owner}", name)


def check_ranges(tensors: Tensors, base: Specs) -> None:
    """Check that every number would fit the base model's dtype, once rounded: then so does each mean of such numbers.

    Raises:
        TensorError: naming the tensor and the number.
    """
    for name, (dtype, _shape) in base.items():
        array, wanted = tensors[name], DTYPES[dtype]
        if array.dtype == wanted or not array.size:
            continue
        least, most = bounds(wanted)
        for number in extremes(array):
            if not _fits(number, wanted):
                raise TensorError(
                    f"holds {number:g}, but the base model's {dtype} goes from {least:g} to {most:g}", name
                )


def to_base_dtypes(tensors: Tensors, base: Specs) -> Tensors:
    """The tensors in the base model's order, each in its dtype where no number changes by it, else as it is."""
    converted: Tensors = {}
    for name, (dtype, _shape) in base.items():
        same = without_loss(tensors[name], DTYPES[dtype])
        converted[name] = tensors[name] if same is None else same
    return converted


def format_shape(shape: tuple[int, ...]) -> str:
    """A shape as ``[2, 3]``; ``[]`` is a scalar."""
    return str(list(shape))


def _fits(number: float, dtype: np.dtype[Any]) -> bool:
    if not is_floating(dtype):
        least, most = bounds(dtype)
        return least <= round(number) <= most
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(np.asarray(number, np.float64).astype(dtype)))
