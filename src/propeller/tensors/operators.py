"""The operators of arrays: what ``x + y`` and ``x < y`` record."""

from typing import TYPE_CHECKING, Any, cast

from propeller.tensors import session
from propeller.tensors.tape import Handle

if TYPE_CHECKING:
    from propeller.tensors.array import Array


class Operators(Handle):
    """A handle with NumPy's operators, element by element."""

    __slots__ = ()
    __hash__ = object.__hash__

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

    def __rfloordiv__(self, other: Any) -> "Array":
        return _record("floordiv", other, self)

    def __mod__(self, other: Any) -> "Array":
        return _record("mod", self, other)

    def __rmod__(self, other: Any) -> "Array":
        return _record("mod", other, self)

    def __pow__(self, other: Any) -> "Array":
        return (
            _record("square", self) if isinstance(other, int) and other == 2 else _record("pow", self, other)
        )

    def __rpow__(self, other: Any) -> "Array":
        return _record("pow", other, self)

    def __matmul__(self, other: Any) -> "Array":
        return _record("matmul", self, other)

    def __neg__(self) -> "Array":
        return _record("neg", self)

    def __abs__(self) -> "Array":
        return _record("abs", self)

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


def _record(name: str, *operands: Any) -> "Array":
    return cast("Array", session.record(name, operands))
