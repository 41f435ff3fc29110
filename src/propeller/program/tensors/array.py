"""An array like NumPy's over whatever does the arithmetic: the sandbox's host, NumPy, or plain Python.

Where it differs from NumPy: a slice is a value of its own, never a view; ``x += y`` changes the object, and nothing else;
the default dtype is float32.
"""

import operator
from array import array as _buffer
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

from propeller.program.tensors import session
from propeller.program.tensors.shapes import FLOAT, INT, TensorError, axis_of, elements
from propeller.program.tensors.tape import Handle, Tape

TYPECODES = {"float32": "f", "float64": "d", "int64": "q", "uint8": "B", "bool": "B", FLOAT: "d", INT: "q"}
"""Of the ``array`` module, for the elements of each dtype."""

Number = float | int | bool
Operand = "Array | float | int | bool"


class Array(Handle):
    """An n-dimensional array of one dtype: ``float32``, ``float64``, ``int64``, ``uint8`` or ``bool``."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __del__(self) -> None:
        self.tape.release(self.handle)

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return elements(self.shape)

    @property
    def T(self) -> "Array":  # noqa: N802 - NumPy's name
        """The axes in reverse order."""
        return self.transpose()

    # Arithmetic -----------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "Array":
        return _record("add", self, other)

    def __radd__(self, other: Any) -> "Array":
        return _record("add", other, self)

    def __sub__(self, other: Any) -> "Array":
        return _record("sub", self, other)

    def __rsub__(self, other: Any) -> "Array":
        return _record("sub", other, self)

    def __mul__(self, other: Any) -> "Array":
        return _record("mul", self, other)

    def __rmul__(self, other: Any) -> "Array":
        return _record("mul", other, self)

    def __truediv__(self, other: Any) -> "Array":
        return _record("div", self, other)

    def __rtruediv__(self, other: Any) -> "Array":
        return _record("div", other, self)

    def __floordiv__(self, other: Any) -> "Array":
        return _record("floordiv", self, other)

    def __mod__(self, other: Any) -> "Array":
        return _record("mod", self, other)

    def __pow__(self, other: Any) -> "Array":
        return (
            _record("square", self) if isinstance(other, int) and other == 2 else _record("pow", self, other)
        )

    def __matmul__(self, other: Any) -> "Array":
        return _record("matmul", self, other)

    def __neg__(self) -> "Array":
        return _record("neg", self)

    def __abs__(self) -> "Array":
        return _record("abs", self)

    def __iadd__(self, other: Any) -> Self:
        return self._become(self + other)

    def __isub__(self, other: Any) -> Self:
        return self._become(self - other)

    def __imul__(self, other: Any) -> Self:
        return self._become(self * other)

    def __itruediv__(self, other: Any) -> Self:
        return self._become(self / other)

    # Comparison -----------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> "Array":  # type: ignore[override]
        return _record("eq", self, other)

    def __ne__(self, other: object) -> "Array":  # type: ignore[override]
        return _record("ne", self, other)

    def __lt__(self, other: Any) -> "Array":
        return _record("lt", self, other)

    def __le__(self, other: Any) -> "Array":
        return _record("le", self, other)

    def __gt__(self, other: Any) -> "Array":
        return _record("gt", self, other)

    def __ge__(self, other: Any) -> "Array":
        return _record("ge", self, other)

    def __and__(self, other: Any) -> "Array":
        return _record("and", self, other)

    def __or__(self, other: Any) -> "Array":
        return _record("or", self, other)

    def __invert__(self) -> "Array":
        return _record("not", self)

    # Reductions -----------------------------------------------------------------------------------------------

    def sum(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The sum along ``axis`` (None: of all elements)."""
        return _record("sum", self, params=[_axes(axis), keepdims])

    def mean(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The mean along ``axis`` (None: of all elements)."""
        return _record("mean", self, params=[_axes(axis), keepdims])

    def max(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The largest along ``axis`` (None: of all elements)."""
        return _record("max", self, params=[_axes(axis), keepdims])

    def min(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The smallest along ``axis`` (None: of all elements)."""
        return _record("min", self, params=[_axes(axis), keepdims])

    def argmax(self, axis: int | None = None) -> "Array":
        """Where the largest is."""
        return _record("argmax", self, params=axis)

    def argmin(self, axis: int | None = None) -> "Array":
        """Where the smallest is."""
        return _record("argmin", self, params=axis)

    # Shape ----------------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> "Array":
        """The same elements in another shape; one size may be -1."""
        sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if -1 in sizes:
            at = sizes.index(-1)
            rest = elements(sizes[:at] + sizes[at + 1 :])
            sizes[at] = self.size // rest if rest else 0
        return _record("reshape", self, params=sizes)

    def transpose(self, *axes: int) -> "Array":
        """The axes in this order (none given: reversed)."""
        order = [axis_of("transpose", axis, self.ndim) for axis in axes] or list(range(self.ndim))[::-1]
        return _record("transpose", self, params=order)

    def astype(self, dtype: str) -> "Array":
        """The elements as another dtype; floats lose their fraction in integers."""
        return _record("cast", self, params=dtype)

    def copy(self) -> "Array":
        """An array of its own, which in-place changes of this one do not reach."""
        return _record("cast", self, params=self.dtype)

    # Elements -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator["Array"]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> "Array":
        """Positions, slices, an array of integers (rows), or an array of rows and one of columns."""
        if isinstance(index, Array):
            return _record("take", self, index)
        if isinstance(index, tuple) and any(isinstance(part, Array) for part in index):
            return _record("pick", self, _columns(self, index))
        return _record("cut", self, params=_parts(self.shape, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, Array):
            self._become(_record("put_rows", self, index, value))
        else:
            self._become(_record("put", self, value, params=_parts(self.shape, index)))

    def item(self) -> Number:
        """The one element, as a Python number."""
        if self.size != 1:
            raise TensorError(f"an array of shape {list(self.shape)} is not one number")
        return self._flat()[0]

    def tolist(self) -> Any:
        """The elements as nested lists (a number, without dimensions)."""
        flat: Any = list(self._flat())
        if not self.shape:
            return flat[0]
        for size in self.shape[:0:-1]:
            flat = [flat[at : at + size] for at in range(0, len(flat), size)] if size else []
        return flat

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype not in {"int64", "uint8", INT}:
            raise TypeError(f"an array of {self.dtype} is not an index")
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __repr__(self) -> str:
        return f"<Array {self.dtype} {list(self.shape)}>"

    def _flat(self) -> Sequence[Number]:
        values = _buffer(TYPECODES[self.dtype])
        values.frombytes(self.tape.read(self))
        return [bool(value) for value in values] if self.dtype == "bool" else values

    def _become(self, result: "Array") -> Self:
        """Take over another's elements, keeping shape and dtype: what an in-place change is here."""
        if result.shape != self.shape:
            raise TensorError(
                f"a result of shape {list(result.shape)} does not fit in place of {list(self.shape)}"
            )
        if result.dtype != self.dtype:
            if not self.dtype.startswith("float"):
                raise TensorError(
                    f"a result of {result.dtype} does not fit in place of {self.dtype}; use astype"
                )
            result = result.astype(self.dtype)
        session.change(self)
        if self.tape is result.tape:
            self.handle, result.handle = result.handle, self.handle
        else:  # an array from outside, in a function that is traced: it gets its own handle back in the end
            self.tape, self.handle = result.tape, result.handle
        return self


def _record(name: str, *operands: Any, params: Any = None) -> Array:
    return cast("Array", session.record(name, operands, params))


def _axes(axis: int | Sequence[int] | None) -> list[int] | None:
    if axis is None:
        return None
    return [axis] if isinstance(axis, int) else list(axis)


def _parts(shape: tuple[int, ...], index: Any) -> list[Any]:
    """An index as ``cut`` takes it."""
    given = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in given:
        at = given.index(Ellipsis)
        given[at : at + 1] = [slice(None)] * (len(shape) - len(given) + 1)
    if len(given) > len(shape):
        raise TensorError(f"too many indices for {len(shape)} dimensions")
    parts: list[Any] = []
    for part, size in zip(given, shape, strict=False):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            parts.append([start, len(range(start, stop, step)), step])
        else:
            place = operator.index(part)
            if not -size <= place < size:
                raise TensorError(f"index {place} is outside an axis of size {size}")
            parts.append(place % size)
    return parts


def _columns(matrix: Array, index: tuple[Any, ...]) -> Array:
    """The column indices of ``matrix[rows, columns]``, where the rows are all, in order."""
    if len(index) == 2 and isinstance(index[1], Array):
        rows: Any = index[0]
        columns: Array = index[1]
        if rows == slice(None) or (isinstance(rows, range) and rows == range(len(matrix))):
            return columns
    raise TensorError("two indices pick one column a row: write x[range(len(x)), columns]")


Tape.make = Array
