"""Einstein's summation convention: products and sums of arrays, told by a letter for each axis.

Two operands at a time, from the left: axes that both have and that nobody needs afterwards are summed by one matrix product, those that
are needed are its stack. An axis that an ellipsis stands for has a label too: a dot and how many such axes are behind it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from propeller.tensors.array import Array
from propeller.tensors.shapes import TensorError, broadcast, elements

__all__ = ["einsum"]


def einsum(subscripts: str, *operands: Array) -> Array:
    """Products and sums by a letter for each axis: ``einsum("ij,jk->ik", a, b)`` is ``a @ b``.

    Args:
        subscripts: The letters of each operand's axes, with commas between the operands, and of the result's after an arrow. What the
            result does not have is summed. Without an arrow it has the letters that occur once, in alphabetical order. ``...`` stands for
            the axes that have no letter; these are broadcast.
        operands: As many as there are between the commas. A letter has one size everywhere.

    Raises:
        TensorError: The letters do not fit the operands, or one has a letter twice.
    """
    terms, wanted = _parse(subscripts, operands)
    result = terms[0]
    for at, other in enumerate(terms[1:], 2):
        result = _product(result, other, {*wanted, *(label for term in terms[at:] for label in term.axes)})
    return result.summed(wanted).arranged(wanted).array


@dataclass(frozen=True)
class _Term:
    """An array and the label of each of its axes."""

    array: Array
    axes: tuple[str, ...]

    def sizes(self, axes: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.array.shape[self.axes.index(axis)] for axis in axes)

    def summed(self, kept: Iterable[str]) -> "_Term":
        """Without the axes that are not kept."""
        left = tuple(axis for axis in self.axes if axis in kept)
        gone = [at for at, axis in enumerate(self.axes) if axis not in kept]
        return _Term(self.array.sum(gone), left) if gone else self

    def arranged(self, axes: Sequence[str]) -> "_Term":
        """With its axes in this order."""
        order = [self.axes.index(axis) for axis in axes]
        return self if order == list(range(len(order))) else _Term(self.array.transpose(order), tuple(axes))


def _product(one: _Term, other: _Term, needed: set[str]) -> _Term:
    both = [axis for axis in one.axes if axis in other.axes]
    # Of what is broadcast and summed, each operand is summed by itself.
    apart = {axis for axis in both if axis not in needed and one.sizes([axis]) != other.sizes([axis])}
    one = one.summed((needed | set(other.axes)) - apart)
    other = other.summed((needed | set(one.axes)) - apart)
    stack = [axis for axis in both if axis in needed]
    inner = [axis for axis in both if axis not in needed and axis not in apart]
    left = [axis for axis in one.axes if axis not in both]
    right = [axis for axis in other.axes if axis not in both]
    x, y = one.arranged([*stack, *left, *inner]).array, other.arranged([*stack, *inner, *right]).array
    rows, columns = one.sizes(left), other.sizes(right)
    if inner:
        count = elements(one.sizes(inner))
        x = _shaped(x, (*one.sizes(stack), elements(rows), count))
        y = _shaped(y, (*other.sizes(stack), count, elements(columns)))
        result = x @ y
    else:
        result = _shaped(x, (*x.shape, *[1] * len(right))) * _shaped(
            y, (*other.sizes(stack), *[1] * len(left), *columns)
        )
    sizes = broadcast("einsum", one.sizes(stack), other.sizes(stack))
    return _Term(_shaped(result, (*sizes, *rows, *columns)), (*stack, *left, *right))


def _shaped(x: Array, shape: tuple[int, ...]) -> Array:
    return x if x.shape == shape else x.reshape(shape)


def _parse(subscripts: str, operands: Sequence[Array]) -> tuple[list[_Term], list[str]]:
    """The operands with their labels, and the labels of the result."""
    text = f"{subscripts!r:.80}"
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    parts = left.split(",")
    if len(parts) != len(operands):
        raise TensorError(f"einsum: {text} is for {len(parts)} operands, got {len(operands)}")
    terms = [
        _Term(array, _labels(part, array.ndim, text)) for part, array in zip(parts, operands, strict=True)
    ]
    every = [axis for term in terms for axis in term.axes]
    hidden = sorted({axis for axis in every if axis[0] == "."}, key=lambda axis: -int(axis[1:]))
    if arrow:
        wanted = list(_labels(right, len(right.replace("...", "")) + len(hidden), text))
    else:
        wanted = hidden + sorted(axis for axis in every if axis[0] != "." and every.count(axis) == 1)
    if not set(wanted) <= set(every):
        raise TensorError(f"einsum: the result of {text} has a letter that no operand has")
    _check_sizes(terms, text)
    return terms, wanted


def _labels(part: str, rank: int, text: str) -> tuple[str, ...]:
    before, dots, after = part.partition("...")
    letters = before + after
    hidden = rank - len(letters)
    if letters and not letters.isalpha():
        raise TensorError(f"einsum: {text} has something else than letters, commas, an arrow and '...'")
    if len(set(letters)) != len(letters):
        raise TensorError(f"einsum: {part!r:.40} has a letter twice; a diagonal is (x * eye(n)).sum(-1)")
    if hidden < 0 or (hidden and not dots):
        raise TensorError(f"einsum: {part!r:.40} does not name {rank} axes")
    return (*before, *(f".{at}" for at in reversed(range(hidden))), *after)


def _check_sizes(terms: Sequence[_Term], text: str) -> None:
    found: dict[str, int] = {}
    for term in terms:
        for axis, size in zip(term.axes, term.array.shape, strict=True):
            known = found.setdefault(axis, size)
            if known != size and not (axis[0] == "." and 1 in {known, size}):
                raise TensorError(f"einsum: an axis {axis} of {text} has the sizes {known} and {size}")
            found[axis] = size if known == 1 else known
