"""What named tensors may be, in every encoding: their names, how many, and how large."""

from collections.abc import Iterable

from propeller.tensors.shapes import TensorError

MAX_TENSORS = 100_000
"""The most tensors a model may have."""

MAX_ELEMENTS = 2**31
"""The most numbers a model may have, in all its tensors."""

MAX_NAME = 512
"""The longest name of a tensor, in characters."""

RESERVED = frozenset({"version", "__metadata__"})
"""Names with another meaning in one of the encodings: a tensor that has one could not be written in all of them."""


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


def check_count(count: int, least: int = 1) -> None:
    """Refuse a model without tensors or with too many.

    Raises:
        TensorError: there are fewer than ``least``, or more than ``MAX_TENSORS``.
    """
    if count < least:
        raise TensorError("there are no tensors; send at least one name with numbers")
    if count > MAX_TENSORS:
        raise TensorError(f"{count} tensors are more than the limit of {MAX_TENSORS}")


def check_elements(sizes: Iterable[int]) -> None:
    """Refuse a model with more than ``MAX_ELEMENTS`` numbers.

    Raises:
        TensorError: it has more.
    """
    total = sum(sizes)
    if total > MAX_ELEMENTS:
        raise TensorError(f"{total} numbers are more than the limit of {MAX_ELEMENTS}")
