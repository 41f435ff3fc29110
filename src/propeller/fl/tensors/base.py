"""What a model is: an ordered mapping of names to numpy arrays, and what two of them must share."""

from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.tensors.limits import MAX_RANK, check_count, check_elements, check_name
from propeller.tensors.shapes import TensorError

Array = npt.NDArray[Any]

Tensors = dict[str, Array]
"""Names to arrays, in the model's own order; 0-d arrays are scalars."""

Shapes = dict[str, tuple[int, ...]]
"""Names to the shapes of arrays, in the model's own order."""

Specs = dict[str, tuple[str, tuple[int, ...]]]
"""Names to the type, as safetensors calls it (``F32``), and the shape of arrays, in the model's own order."""

AVERAGEABLE_KINDS = frozenset("fiu")
"""numpy's kinds of numbers that a mean can be taken of: floating point and integers, not bool and not text."""


def check_array(name: str, array: Array) -> None:
    """Refuse an array that cannot be averaged, is empty, or holds NaN or an infinity.

    Raises:
        TensorError: naming the tensor.
    """
    if array.dtype.kind not in AVERAGEABLE_KINDS or array.dtype.itemsize > 8:
        raise TensorError(f"{array.dtype} cannot be averaged; use floating point or integers", name)
    if array.ndim > MAX_RANK:
        raise TensorError(f"has {array.ndim} dimensions, more than the limit of {MAX_RANK}", name)
    if array.size == 0:
        raise TensorError(f"has no elements (shape {format_shape(array.shape)})", name)
    # The extremes carry any NaN or infinity, and finding them needs no array of bools.
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
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


def shapes_of(tensors: Tensors) -> Shapes:
    """The names and shapes of a model."""
    return {name: array.shape for name, array in tensors.items()}


def check_shapes(tensors: Tensors, expected: Shapes, owner: str = "the base model") -> None:
    """Check that tensors have exactly the expected names and shapes, in any order, of any dtype.

    Args:
        tensors: what is checked, an update for example.
        expected: the names and shapes of what they must fit.
        owner: what the errors call that.

    Raises:
        TensorError: naming the tensor, with both shapes where they differ.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise TensorError(f"is missing; {owner} has it with shape {format_shape(shape)}", name)
        if tensors[name].shape != shape:
            raise TensorError(
                f"has shape {format_shape(tensors[name].shape)}, {owner} has {format_shape(shape)}", name
            )
    for name in tensors:
        if name not in expected:
            raise TensorError(f"is not in {owner}", name)


def format_shape(shape: tuple[int, ...]) -> str:
    """A shape as ``[2, 3]``; ``[]`` is a scalar."""
    return str(list(shape))
