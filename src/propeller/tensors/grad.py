"""Gradients: the operations of a function are collected while it runs, and walked backwards with the chain rule.

Reverse-mode automatic differentiation (Baydin et al., Automatic Differentiation in Machine Learning: a Survey, JMLR 18, 2018). Each
operation's gradient is computed by operations on arrays, so a gradient inside ``jit`` is traced with the rest.
"""

import functools
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from propeller.tensors import session
from propeller.tensors.array import Array, record
from propeller.tensors.functions import full
from propeller.tensors.operations import OPERATIONS, Call, Gradient, OperationCall
from propeller.tensors.operations.reductions import sum_to_shape
from propeller.tensors.shapes import CARRIED, HALVES, TensorError, is_floating
from propeller.tensors.trees import leaves_of, map_leaves


def value_and_grad(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``function``'s value and its gradient by its first argument.

    The function returns one number (an array without dimensions), or a tuple that begins with it: what follows is handed through. Its first
    argument is an array, or dicts, lists and tuples of them; the gradient has the same form. Inside, arrays from outside must not be changed in place.
    """

    @functools.wraps(function)
    def with_gradient(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        with session.current().differentiate() as calls:
            value = function(model, *args, **kwargs)
        loss = value[0] if isinstance(value, tuple) else value
        if not isinstance(loss, Array) or loss.shape != ():
            shown = list(loss.shape) if isinstance(loss, Array) else type(loss).__name__
            remedy = (
                "use .sum() or .mean()"
                if isinstance(loss, Array)
                else "return an array, without float(…) or item()"
            )
            name = getattr(function, "__name__", "the function")
            raise TensorError(f"a gradient is of one number; {name} returned {shown}: {remedy}")
        known, needed = dependent_calls((id(leaf) for leaf in leaves_of(model)), calls)
        found = {id(loss): full((), 1.0, loss.dtype if is_float(loss) else "float32")}
        propagate(found, needed, known)
        return value, map_leaves(functools.partial(_gradient_of, found), model)

    return with_gradient


def grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``'s gradient by its first argument; see ``value_and_grad``."""
    both = value_and_grad(function)
    return functools.wraps(function)(lambda *args, **kwargs: both(*args, **kwargs)[1])


def dependent_calls(by: Iterable[int], calls: Sequence[Call]) -> tuple[set[int], list[Call]]:
    """The identities of what depends on arrays with these identities, themselves among them, and the operations that do."""
    known, needed = set(by), []
    for call in calls:
        if any(id(operand) in known for operand in call.operands):
            needed.append(call)
            known.update(map(id, call.results))
    return known, needed


def propagate(found: dict[int, Array], calls: Sequence[Call], known: Container[int]) -> None:
    """Walk operations backwards: ``found`` has gradients by arrays' identities, and gets those of what they depend on.

    Args:
        found: The gradients of the last results.
        calls: The operations, in their order.
        known: The identities of arrays whose gradients are wanted, or are needed for these.
    """
    for call in reversed(calls):
        uppers = [found.pop(id(result), None) for result in call.results]
        if all(upper is None for upper in uppers) or not any(map(is_float, call.operands)):
            continue
        if not isinstance(call, OperationCall):
            parts: Sequence[Any] = call.gradients(uppers, known)
        elif is_float(call.result):
            parts = _gradients(call, uppers[0])
        else:
            continue
        for operand, part in zip(call.operands, parts, strict=False):
            if part is not None and is_float(operand):
                part = sum_to_shape(part, operand.shape)  # noqa: PLW2901 - the same gradient, in the operand's shape
                before = found.get(id(operand))
                found[id(operand)] = part if before is None else before + part


def _gradients(call: OperationCall, upper: Any) -> Sequence[Any]:
    gradient: Gradient | None = OPERATIONS[call.name].gradient
    if gradient is None:
        raise TensorError(f"{call.name} has no gradient; compute it outside of what is differentiated")
    return gradient(upper, call, record)


def is_float(value: Any) -> bool:
    """Whether this is an array of floats: what has a gradient."""
    return isinstance(value, Array) and (is_floating(value.dtype) or value.dtype in HALVES)


def _gradient_of(found: dict[int, Array], value: Any) -> Array:
    if not isinstance(value, Array):
        raise TensorError(f"a gradient is by arrays; the first argument holds a {type(value).__name__}")
    gradient = found.get(id(value))
    dtype = CARRIED.get(value.dtype, value.dtype)
    if gradient is None:
        return full(value.shape, 0, dtype)
    return gradient if gradient.dtype == dtype else gradient.astype(dtype)
