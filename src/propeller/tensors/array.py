"""An array like NumPy's over whatever does the arithmetic: the sandbox's host, NumPy, or plain Python.

Where it differs from NumPy: a slice is a value of its own, never a view; ``x += y`` changes the object, and nothing else;
the default dtype is float32.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Never, Self

from propeller.tensors import hints, session, subscripts
from propeller.tensors.encoding import Number, decode
from propeller.tensors.literals import pack
from propeller.tensors.operations import OperationCall
from propeller.tensors.shapes import (
    INT,
    ITEM_BYTES,
    TYPECODES,
    Spec,
    TensorError,
    axis_of,
    dtype_name,
    elements,
    is_floating,
)
from propeller.tensors.tape import Handle, MainTape, Tape

_MAX_SHOWN = 100
"""Elements that are printed in full."""

_EDGE = 3
"""Of a longer axis, how many are printed at each end."""


def record(name: str, *operands: Any, params: Any = None) -> "Array":
    """Record an operation; returns its result, which is known by shape only until it is read.

    Raises:
        TensorError: It does not take these operands.
    """
    now = session.current()
    tape = now.tape
    result = Array(tape, *tape.record(name, operands, params))
    if now.calls is not None:
        now.calls.append(OperationCall(name, operands, params, result))
    return result


def literal(values: Any, dtype: Any = None) -> "Array":
    """An array of a number, or of nested lists of numbers.

    Raises:
        TensorError: The lists are ragged, hold something else, or an integer does not fit the dtype.
    """
    return create(*pack(values, dtype))


def from_bytes(data: bytes, dtype: str, shape: Sequence[int]) -> "Array":
    """An array of little-endian elements.

    Raises:
        TensorError: There are not as many bytes as the shape takes.
    """
    if len(data) != elements(shape) * ITEM_BYTES.get(dtype, 0):
        raise TensorError(f"array: {len(data)} bytes are not {elements(shape)} elements of {dtype}")
    return create(data, (dtype, tuple(shape)))


def open_tensor(source: str, name: str, spec: Spec) -> "Array":
    """A tensor of a source (``model`` or ``data``), which stays where the machine is."""
    tape = session.current().main
    return Array(tape, tape.open(source, name), spec)


class Array(Handle):
    """An n-dimensional array of one dtype: ``float32``, ``float64``, ``int64``, ``uint8`` or ``bool``.

    ``uint64``, ``float16`` and ``bfloat16`` are carried, read and converted, and not computed with.
    """

    __slots__ = ()
    __hash__ = object.__hash__
    __array_ufunc__ = None  # NumPy leaves `numpy_array + array` to us, and we say what to do

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
            raise AttributeError(f"an array has no {name!r}{hints.hint(name, vars(Array))}")

    # Operators ------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "Array":
        return record("add", self, other)

    def __radd__(self, other: Any) -> "Array":
        return record("add", other, self)

    def __sub__(self, other: Any) -> "Array":
        return record("sub", self, other)

    def __rsub__(self, other: Any) -> "Array":
        return record("sub", other, self)

    def __mul__(self, other: Any) -> "Array":
        return record("mul", self, other)

    def __rmul__(self, other: Any) -> "Array":
        return record("mul", other, self)

    def __truediv__(self, other: Any) -> "Array":
        return record("div", self, other)

    def __rtruediv__(self, other: Any) -> "Array":
        return record("div", other, self)

    def __floordiv__(self, other: Any) -> "Array":
        return record("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> "Array":
        return record("floordiv", other, self)

    def __mod__(self, other: Any) -> "Array":
        return record("mod", self, other)

    def __rmod__(self, other: Any) -> "Array":
        return record("mod", other, self)

    def __pow__(self, other: Any) -> "Array":
        return record("square", self) if isinstance(other, int) and other == 2 else record("pow", self, other)

    def __rpow__(self, other: Any) -> "Array":
        return record("pow", other, self)

    def __matmul__(self, other: Any) -> "Array":
        return record("matmul", self, other)

    def __neg__(self) -> "Array":
        return record("neg", self)

    def __abs__(self) -> "Array":
        return record("abs", self)

    def __eq__(self, other: object) -> "Array":  # type: ignore[override]
        return record("eq", self, other)

    def __ne__(self, other: object) -> "Array":  # type: ignore[override]
        return record("ne", self, other)

    def __lt__(self, other: Any) -> "Array":
        return record("lt", self, other)

    def __le__(self, other: Any) -> "Array":
        return record("le", self, other)

    def __gt__(self, other: Any) -> "Array":
        return record("gt", self, other)

    def __ge__(self, other: Any) -> "Array":
        return record("ge", self, other)

    def __and__(self, other: Any) -> "Array":
        return record("and", self, other)

    def __or__(self, other: Any) -> "Array":
        return record("or", self, other)

    def __invert__(self) -> "Array":
        return record("not", self)

    def __iadd__(self, other: Any) -> Self:
        return self._become(self + other)

    def __isub__(self, other: Any) -> Self:
        return self._become(self - other)

    def __imul__(self, other: Any) -> Self:
        return self._become(self * other)

    def __itruediv__(self, other: Any) -> Self:
        return self._become(self / other)

    # Reductions -----------------------------------------------------------------------------------------------

    def sum(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The sum along ``axis`` (None: of all elements)."""
        return record("sum", self, params=[axes_of(axis), keepdims])

    def mean(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The mean along ``axis`` (None: of all elements)."""
        return record("mean", self, params=[axes_of(axis), keepdims])

    def max(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The largest along ``axis`` (None: of all elements)."""
        return record("max", self, params=[axes_of(axis), keepdims])

    def min(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The smallest along ``axis`` (None: of all elements)."""
        return record("min", self, params=[axes_of(axis), keepdims])

    def var(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The mean of the squared distances from the mean along ``axis`` (None: of all elements)."""
        apart = self - self.mean(axis, keepdims=True)
        return record("square", apart).mean(axis, keepdims=keepdims)

    def std(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """The square root of ``var``."""
        return record("sqrt", self.var(axis, keepdims=keepdims))

    def any(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """Whether an element along ``axis`` is not zero (None: any of all)."""
        return (self != 0).sum(axis, keepdims=keepdims) > 0

    def all(self, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> "Array":
        """Whether no element along ``axis`` is zero (None: none of all)."""
        return (self == 0).sum(axis, keepdims=keepdims) == 0

    def argmax(self, axis: int | None = None) -> "Array":
        """Where the largest is."""
        return record("argmax", self, params=axis)

    def argmin(self, axis: int | None = None) -> "Array":
        """Where the smallest is."""
        return record("argmin", self, params=axis)

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
        return record("reshape", self, params=sizes)

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
        return record("transpose", self, params=order)

    def clip(self, low: Any = None, high: Any = None) -> "Array":
        """Each element, or the nearer of two bounds (None: no bound) where it is beyond."""
        raised = self if low is None else record("maximum", self, low)
        return raised if high is None else record("minimum", raised, high)

    def astype(self, dtype: Any) -> "Array":
        """The elements as another dtype; floats lose their fraction in integers."""
        return record("cast", self, params=dtype_name(dtype))

    def copy(self) -> "Array":
        """An array of its own, which in-place changes of this one do not reach."""
        return record("cast", self, params=self.dtype)

    def __copy__(self) -> "Array":
        return self.copy()

    def __deepcopy__(self, _memo: Any) -> "Array":
        return self.copy()

    def __reduce_ex__(self, _protocol: Any) -> Never:
        raise TypeError("an array is not pickled; store x.tolist()")

    # Elements -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator["Array"]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> "Array":
        """Positions, slices and ``None``; rows, columns, or one column of each row, by integers; what a mask chooses."""
        result = self
        for access in subscripts.plan_read(self.shape, index):
            result = _apply(access, result)
        return result

    def __setitem__(self, index: Any, value: Any) -> None:
        result = self
        for access in subscripts.plan_write(self.spec, index, value):
            result = _apply(access, result)
        self._become(result)

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
        for axis in range(self.ndim - 1, 0, -1):
            size, rows = self.shape[axis], elements(self.shape[:axis])
            flat = [flat[row * size : (row + 1) * size] for row in range(rows)]
        return flat

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The elements for NumPy (``np.asarray(x)``), which calls this: always a copy."""
        if copy is False:
            raise ValueError("an array of a program is no memory of NumPy's: it cannot be had without a copy")
        import numpy as np  # a native run: in the sandbox there is none, and nobody who calls this

        if self.dtype == "bfloat16":  # which NumPy has not
            return self.astype("float32").__array__(dtype)
        wanted = {"bool": "<u1", "float16": "<f2"}.get(self.dtype) or f"<{TYPECODES[self.dtype]}"
        elements = np.frombuffer(self.tape.read(self), wanted).reshape(self.shape)
        return elements.astype(dtype or self.dtype)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype not in {"int64", "uint8", "uint64", INT}:
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
        shown = self._shown()
        return repr(self) if shown is None else shown

    def __repr__(self) -> str:
        shown = self._shown(len("Array("))
        return (
            f"<Array {self.dtype} {list(self.shape)}>" if shown is None else f"Array({shown}, {self.dtype})"
        )

    def _flat(self) -> Sequence[Number]:
        return decode(self.tape.read(self), self.dtype)

    def _become(self, result: "Array") -> Self:
        """Take over another's elements, keeping shape and dtype: what an in-place change is here."""
        if result.shape != self.shape:
            raise TensorError(
                f"a result of shape {list(result.shape)} does not fit in place of {list(self.shape)}"
            )
        if result.dtype != self.dtype:
            if not is_floating(self.dtype):
                raise TensorError(
                    f"a result of {result.dtype} does not fit in place of {self.dtype}; use astype"
                )
            result = result.astype(self.dtype)
        now = session.current()
        now.begin_change(self)
        if self.tape is result.tape:
            self.handle, result.handle = result.handle, self.handle
        else:  # an array from outside, in a function that is traced: it gets its own handle back in the end
            self.tape, self.handle = result.tape, result.handle
        now.end_change(self, result)
        return self

    def _shown(self, indent: int = 0) -> str | None:
        """The elements in brackets, a line a row; None inside a traced function, where there are none.

        Only what is shown is read.
        """
        if session.current().tracing or not isinstance(self.tape, MainTape):
            return None
        shown = self
        gaps = [self.size > _MAX_SHOWN and size > 2 * _EDGE for size in self.shape]
        for axis, gap in enumerate(gaps):
            if gap:
                shown = shown._ends(axis)
        return _nested_text(shown.tolist(), gaps, indent)

    def _ends(self, axis: int) -> "Array":
        # On the tape itself: what is only shown is no part of a gradient.
        tape = session.current().main
        whole = [[0, size, 1] for size in self.shape[:axis]]
        parts = [
            _record_on(tape, "cut", (self,), [*whole, [start, _EDGE, 1]])
            for start in (0, self.shape[axis] - _EDGE)
        ]
        return _record_on(tape, "concatenate", parts, axis)


def _record_on(tape: Tape, name: str, operands: Sequence[Any], params: Any) -> Array:
    return Array(tape, *tape.record(name, operands, params))


def create(data: bytes, spec: Spec) -> Array:
    """An array of little-endian elements, as many as its spec has."""
    tape = session.current().main
    return Array(tape, tape.create(data, spec), spec)


def _apply(access: subscripts.Access, x: Array) -> Array:
    name, operands, params, ahead = access
    if not operands and not ahead:
        return record(name, x, params=params)
    return record(name, *map(_operand, ahead), x, *map(_operand, operands), params=params)


def _operand(value: Any) -> Any:
    if isinstance(value, subscripts.Literal):
        return create(*value)
    return positions_of(value.mask) if isinstance(value, subscripts.Chosen) else value


def positions_of(mask: Array | subscripts.Literal) -> Array:
    """Where the elements of a mask that are true are, in C order. How many they are is read.

    Raises:
        TensorError: A function is being traced.
    """
    if isinstance(mask, subscripts.Literal):
        return record("nonzero", create(*mask), params=sum(mask.data))
    if session.current().tracing:
        raise TensorError(
            "inside a traced function it is not known how many elements a mask chooses: write where(mask, x, 0), "
            "or weigh with mask * x"
        )
    return record("nonzero", mask, params=mask.sum().item())


def axes_of(axis: int | Sequence[int] | None) -> list[int] | None:
    """Axes as operations take them: each by its number, None for all."""
    if axis is None:
        return None
    return [axis] if isinstance(axis, int) else list(axis)


def _nested_text(value: Any, gaps: list[bool], indent: int) -> str:
    if not isinstance(value, list):
        return _number_text(value)
    parts = [_nested_text(each, gaps[1:], indent + 1) for each in value]
    if gaps[0]:
        parts.insert(_EDGE, "...")
    between = ", " if len(gaps) == 1 else ",\n" + " " * (indent + 1)
    return f"[{between.join(parts)}]"


def _number_text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6g}"
    return f"{text}.0" if text.lstrip("-").isdigit() else text
