"""What an operation is: one record, which a program's side, both machines and the documentation read."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from propeller.tensors.shapes import Spec

Rule = Callable[[str, Sequence[Spec], Any], Spec]
"""``(name, specs of the operands, params)`` → the spec of the result; raises TensorError where it does not take these."""

Kernel = Callable[..., Any]
"""Computes the result from the operands' values."""

KernelFactory = Callable[[Sequence[Spec], Any, Spec], Kernel]
"""``(specs of the operands, params, spec of the result)`` → the kernel for these."""


class OperationCall(NamedTuple):
    """An operation that a program did: its name, operands (arrays or numbers), params, and the array that it gave."""

    name: str
    operands: Sequence[Any]
    params: Any
    result: Any

    @property
    def results(self) -> tuple[Any]:
        """The array that it gave."""
        return (self.result,)

    def exchanged(self, one: Any, other: Any) -> "OperationCall":
        """With two arrays in each other's place."""
        if not any(each is one or each is other for each in (*self.operands, self.result)):
            return self
        places = {id(one): other, id(other): one}
        operands = [places.get(id(each), each) for each in self.operands]
        return self._replace(operands=operands, result=places.get(id(self.result), self.result))


class CompoundCall(Protocol):
    """Many operations whose gradient is found at once."""

    @property
    def operands(self) -> Sequence[Any]:
        """The arrays that go in."""
        ...

    @property
    def results(self) -> Sequence[Any]:
        """The arrays that come out."""
        ...

    def gradients(self, uppers: Sequence[Any], wanted: Container[int]) -> Sequence[Any]:
        """The gradient of each operand whose identity is wanted, of those of the results; None for one that has none."""
        ...

    def expanded(self) -> list["OperationCall"]:
        """The operations one by one."""
        ...

    def exchanged(self, one: Any, other: Any) -> "CompoundCall":
        """With two arrays in each other's place.

        Raises:
            TensorError: It has one of them.
        """
        ...


Call = OperationCall | CompoundCall


class Record(Protocol):
    """Records an operation and returns the array that it gives: how a gradient computes what arrays have no method for."""

    def __call__(self, name: str, *operands: Any, params: Any = None) -> Any: ...


Gradient = Callable[[Any, OperationCall, Record], Sequence[Any]]
"""``(gradient of the result, call, record)`` → the gradient of each operand, None for one that has none.

What broadcasting repeated is summed up by the caller.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One operation: what it takes and gives, its gradient, its kernel in plain Python, and its line in docs/tensors.md."""

    name: str
    operands: int | None
    """How many it takes; None: any number."""
    params: str = ""
    """What else it takes, for the documentation."""
    doc: str
    """What it gives, for the documentation."""
    infer: Rule
    gradient: Gradient | None
    """None: it has none, and to ask for it is an error."""
    kernel: KernelFactory
    """In plain Python, on flat lists of elements in C order."""
    ufunc: str = ""
    """The name of NumPy's ufunc that does the same, and may write over an operand; without one, ``numpy_kernels.py`` has the kernel."""
    view: bool = False
    """Whether the result may share the operand's memory."""
    moves: bool = False
    """Whether the result's elements are some of the first operand's, so that there is nothing to round."""
