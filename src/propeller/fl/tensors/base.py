"""What a model is: an ordered mapping of names to numpy arrays, and what two of them must share."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError

Array = npt.NDArray[Any]

Tensors = dict[str, Array]
"""Names to arrays, in the model's own order; 0-d arrays are scalars."""

MAX_RANK = 32
"""The most dimensions a tensor may have."""

MAX_TENSORS = 100_000
"""The most tensors a model may have."""

MAX_ELEMENTS = 2**31
"""The most numbers a model may have, in all its tensors."""

MAX_NAME = 512
"""The longest name of a tensor, in characters."""

RESERVED = frozenset({"version", "__metadata__"})
"""Names with another meaning in one of the encodings: a tensor that has one could not be written in all of them."""

AVERAGED = frozenset("fiu")
"""numpy's kinds of numbers that a mean can be taken of: floating point and integers, not bool and not text."""


class TensorError(InvalidError):
    """Tensors that cannot be read or do not fit.

    Attributes:
        tensor: the name of the tensor that is wrong, or ``None`` when the fault is not in one of them.
    """

    def __init__(self, reason: str, tensor: str | None = None) -> None:
        self.tensor = tensor
        super().__init__(reason if tensor is None else f"tensor {tensor[:80]!r}: {reason}")


def check_name(name: object) -> str:
    """Return ``name`` if a tensor may have it.

    Raises:
        TensorError: it is not text, empty, too long, not printable, or reserved.
    """
    if not isinstance(name, str):
        raise TensorError(f"the name of a tensor must be text, not {type(name).__name__}")
    if not name:
        raise TensorError("a tensor has an empty name")
    if len(name) > MAX_NAME:
        raise TensorError(f"its name is longer than {MAX_NAME} characters", name)
    if not name.isprintable():
        raise TensorError("its name has characters that cannot be printed", name)
    if name in RESERVED:
        raise TensorError("this name is reserved; give the tensor another one", name)
    return name


def check_count(count: int) -> None:
    """Refuse a model without tensors or with too many.

    Raises:
        TensorError: there are none, or more than ``MAX_TENSORS``.
    """
    if count == 0:
        raise TensorError("there are no tensors; send at least one name with numbers")
    if count > MAX_TENSORS:
        raise TensorError(f"{count} tensors are more than the limit of {MAX_TENSORS}")


def check_array(name: str, array: Array) -> None:
    """Refuse an array that cannot be averaged, is empty, or holds NaN or an infinity.

    Raises:
        TensorError: naming the tensor.
    """
    if array.dtype.kind not in AVERAGED or array.dtype.itemsize > 8:
        raise TensorError(f"{array.dtype} cannot be averaged; use floating point or integers", name)
    if array.ndim > MAX_RANK:
        raise TensorError(f"has {array.ndim} dimensions, more than the limit of {MAX_RANK}", name)
    if array.size == 0:
        raise TensorError(f"has no elements (shape {show(array.shape)})", name)
    # The extremes carry any NaN or infinity, and finding them needs no array of bools.
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise TensorError("holds NaN or an infinity; every number must be finite", name)


def check_elements(sizes: Iterable[int]) -> None:
    """Refuse a model with more than ``MAX_ELEMENTS`` numbers.

    Raises:
        TensorError: it has more.
    """
    total = sum(sizes)
    if total > MAX_ELEMENTS:
        raise TensorError(f"{total} numbers are more than the limit of {MAX_ELEMENTS}")


def check(tensors: Tensors) -> None:
    """Check a whole model that did not come out of a codec.

    Raises:
        TensorError: naming the tensor that is wrong.
    """
    check_count(len(tensors))
    check_elements(array.size for array in tensors.values())
    for name, array in tensors.items():
        check_array(check_name(name), array)


def check_fits(update: Tensors, base: Tensors, called: str = "the base model") -> None:
    """Check that an update has exactly the names and shapes of its base, in any order, of any dtype.

    Args:
        update: what is checked.
        base: what it is checked against.
        called: what the errors call ``base``.

    Raises:
        TensorError: naming the tensor, with both shapes where they differ.
    """
    for name, array in base.items():
        if name not in update:
            raise TensorError(f"is missing; {called} has it with shape {show(array.shape)}", name)
        if update[name].shape != array.shape:
            raise TensorError(f"has shape {show(update[name].shape)}, {called} has {show(array.shape)}", name)
    for name in update:
        if name not in base:
            raise TensorError(f"is not in {called}", name)


def show(shape: tuple[int, ...]) -> str:
    """A shape as ``[2, 3]``; ``[]`` is a scalar."""
    return str(list(shape))
