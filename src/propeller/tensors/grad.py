"""Gradients: the operations of a function are collected while it runs, and walked backwards with the chain rule.

Reverse-mode automatic differentiation (Baydin et al., Automatic Differentiation in Machine Learning: a Survey, JMLR 18, 2018). Each
operation's gradient is computed by operations on arrays, so a gradient inside ``jit`` is traced with the rest.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from propeller.tensors import session
from propeller.tensors.array import Array, record
from propeller.tensors.functions import full, zeros_like
from propeller.tensors.operations import OPERATIONS, OperationCall
from propeller.tensors.operations.reductions import sum_to_shape
from propeller.tensors.shapes import TensorError


def value_and_grad(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``function``'s value and its gradient by its first argument.

    The function returns one number (an array without dimensions), or a tuple that begins with it: what follows is handed through. Its first
    argument is an array, or dicts, lists and tuples of them; the gradient has the same form. Arrays must not be changed in place inside.
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
        return value, _gather(model, _backward(loss, _needed(model, calls)))

    return with_gradient


def grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``'s gradient by its first argument; see ``value_and_grad``."""
    both = value_and_grad(function)
    return functools.wraps(function)(lambda *args, **kwargs: both(*args, **kwargs)[1])


def _needed(model: Any, calls: Sequence[OperationCall]) -> list[OperationCall]:
    """The operations that depend on the first argument."""
    known = {id(array) for array in _arrays(model)}
    needed = []
    for call in calls:
        if any(id(operand) in known for operand in call.operands):
            needed.append(call)
            known.add(id(call.result))
    return needed


def _arrays(value: Any) -> list[Array]:
    if isinstance(value, Array):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for part in parts for array in _arrays(part)]


def _backward(loss: Array, calls: Sequence[OperationCall]) -> dict[int, Array]:
    """The gradient of the loss by every array that it depends on, by the array's identity."""
    found: dict[int, Array] = {id(loss): full((), 1.0, loss.dtype if _is_float(loss) else "float32")}
    for call in reversed(calls):
        upper = found.pop(id(call.result), None)
        if upper is None or not _is_float(call.result) or not any(map(_is_float, call.operands)):
            continue
        gradient = OPERATIONS[call.name].gradient
        if gradient is None:
            raise TensorError(f"{call.name} has no gradient; compute it outside of what is differentiated")
        for operand, part in zip(call.operands, gradient(upper, call, record), strict=False):
            if part is not None and _is_float(operand):
                part = sum_to_shape(part, operand.shape)  # noqa: PLW2901 - the same gradient, in the operand's shape
                known = found.get(id(operand))
                found[id(operand)] = part if known is None else known + part
    return found


def _is_float(value: Any) -> bool:
    return isinstance(value, Array) and value.dtype.startswith("float")


def _gather(value: Any, found: dict[int, Array]) -> Any:
    if isinstance(value, Array):
        gradient = found.get(id(value))
        if gradient is None:
            return zeros_like(value)
        return gradient if gradient.dtype == value.dtype else gradient.astype(value.dtype)
    if isinstance(value, dict):
        return {name: _gather(each, found) for name, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [_gather(each, found) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    raise TensorError(f"a gradient is by arrays; the first argument holds a {type(value).__name__}")
