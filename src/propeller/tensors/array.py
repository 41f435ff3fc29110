"""An array like NumPy's over whatever does the arithmetic: the sandbox's host, NumPy, or plain Python.

Where it differs from NumPy: a slice is a value of its own, never a view; ``x += y`` changes the object, and nothing else;
the default dtype is float32.
"""

from array import array as _buffer
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Never, Self, cast

from propeller.tensors import hints, session, subscripts, text
from propeller.tensors.literals import TYPECODES, Number
from propeller.tensors.operators import Operators
from propeller.tensors.shapes import INT, TensorError, axis_of, dtype_name, elements
from propeller.tensors.tape import Tape


class Array(Operators):
    """An n-dimensional array of one dtype: ``float32``, ``float64``, ``int64``, ``uint8`` or ``bool``."""

    __slots__ = ()

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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Never:
            raise AttributeError(f"an array has no {name!r}{hints.hint(name)}")

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

    def var(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The mean of the squared distances from the mean along ``axis`` (None: of all elements)."""
        apart = self - self.mean(axis, keepdims=True)
        return _record("square", apart).mean(axis, keepdims=keepdims)

    def std(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The square root of ``var``."""
        return _record("sqrt", self.var(axis, keepdims=keepdims))

    def any(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """Whether an element along ``axis`` is not zero (None: any of all)."""
        return (self != 0).sum(axis, keepdims=keepdims) > 0

    def all(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """Whether no element along ``axis`` is zero (None: none of all)."""
        return (self == 0).sum(axis, keepdims=keepdims) == 0

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
        if sizes.count(-1) > 1:
            raise TensorError(f"reshape: {sizes} leaves more than one size open")
        if -1 in sizes:
            at = sizes.index(-1)
            rest = elements(sizes[:at] + sizes[at + 1 :])
            sizes[at] = self.size // rest if rest else 0
        return _record("reshape", self, params=sizes)

    def flatten(self) -> "Array":
        """The elements in one dimension."""
        return self.reshape(-1)

    def squeeze(self, axis: int | None = None) -> "Array":
        """Without the axes of size 1 (or without ``axis``, which has it)."""
        gone = None if axis is None else axis_of("squeeze", axis, self.ndim)
        if gone is not None and self.shape[gone] != 1:
            raise TensorError(f"squeeze: axis {axis} of shape {list(self.shape)} is not of size 1")
        kept = [size for at, size in enumerate(self.shape) if (size != 1 if gone is None else at != gone)]
        return self.reshape(kept)

    def transpose(self, *axes: Any) -> "Array":
        """The axes in this order (none given: reversed)."""
        given = axes[0] if len(axes) == 1 and isinstance(axes[0], list | tuple) else axes
        order = [axis_of("transpose", axis, self.ndim) for axis in given] or list(range(self.ndim))[::-1]
        return _record("transpose", self, params=order)

    def clip(self, low: Any = None, high: Any = None) -> "Array":
        """Each element, or the nearer of two bounds (None: no bound) where it is beyond."""
        raised = self if low is None else _record("maximum", self, low)
        return raised if high is None else _record("minimum", raised, high)

    def astype(self, dtype: Any) -> "Array":
        """The elements as another dtype; floats lose their fraction in integers."""
        return _record("cast", self, params=dtype_name(dtype))

    def copy(self) -> "Array":
        """An array of its own, which in-place changes of this one do not reach."""
        return _record("cast", self, params=self.dtype)

    def __copy__(self) -> "Array":
        return self.copy()

    def __deepcopy__(self, _memo: Any) -> "Array":
        return self.copy()

    def __reduce_ex__(self, _protocol: Any) -> Never:
        raise TypeError("an array is not pickled; store x.tolist()")

    def __iadd__(self, other: Any) -> Self:
        return self._become(self + other)

    def __isub__(self, other: Any) -> Self:
        return self._become(self - other)

    def __imul__(self, other: Any) -> Self:
        return self._become(self * other)

    def __itruediv__(self, other: Any) -> Self:
        return self._become(self / other)

    # Elements -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator["Array"]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> "Array":
        """Positions, slices and ``None``; rows, columns, or one column of each row, by integers."""
        return cast("Array", subscripts.get(self, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._become(subscripts.put(self, index, value))

    def item(self) -> Number:
        """The one element, as a Python number."""
        if self.size != 1:
            raise TensorError(
                f"an array of shape {list(self.shape)} is not one number; reduce it first, or read x.tolist()"
            )
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
        if self.size != 1:
            raise TensorError(
                f"an array of shape {list(self.shape)} is neither true nor false: use .any() or .all(), "
                "and & | ~ for and, or, not"
            )
        return bool(self.item())

    def __round__(self, digits: int | None = None) -> Number:
        return round(self.item(), digits)

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec else str(self), spec)

    def __str__(self) -> str:
        shown = text.values(self)
        return repr(self) if shown is None else shown

    def __repr__(self) -> str:
        shown = text.values(self, len("Array("))
        return (
            f"<Array {self.dtype} {list(self.shape)}>" if shown is None else f"Array({shown}, {self.dtype})"
        )

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


Tape.make = Array
