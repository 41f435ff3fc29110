"""Gradients: the operations of a function are noted while it runs, and walked backwards with the chain rule.

Reverse-mode automatic differentiation (Baydin et al., Automatic Differentiation in Machine Learning: a Survey, JMLR 18, 2018). The rules
are operations on arrays themselves, so a gradient inside ``jit`` is traced with the rest.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

from propeller.tensors import session
from propeller.tensors.array import Array
from propeller.tensors.functions import full, one_hot, sign, where, zeros_like
from propeller.tensors.shapes import FLOAT, TensorError, elements

Rule = Callable[[Array, Array, Sequence[Any], Any], Sequence[Any]]
"""``(gradient of the result, result, operands, params)`` → the gradient of each operand, None where there is none."""


def value_and_grad(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``function``'s value and its gradient by its first argument.

    The function returns one number (an array without dimensions), or a tuple that begins with it: what follows is handed through. Its first
    argument is an array, or dicts, lists and tuples of them; the gradient has the same form. Arrays must not be changed in place inside.
    """

    @functools.wraps(function)
    def with_gradient(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        notes: list[session.Note] = []
        with session.noted(notes):
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
        return value, _gather(model, _backward(loss, _needed(model, notes)))

    return with_gradient


def grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``'s gradient by its first argument; see ``value_and_grad``."""
    both = value_and_grad(function)
    return functools.wraps(function)(lambda *args, **kwargs: both(*args, **kwargs)[1])


def _needed(model: Any, notes: Sequence[session.Note]) -> list[session.Note]:
    """The operations that depend on the first argument."""
    known = {id(array) for array in _arrays(model)}
    needed = []
    for note in notes:
        if any(id(operand) in known for operand in note[1]):
            needed.append(note)
            known.add(id(note[3]))
    return needed


def _arrays(value: Any) -> list[Array]:
    if isinstance(value, Array):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for part in parts for array in _arrays(part)]


def _backward(loss: Array, notes: Sequence[session.Note]) -> dict[int, Array]:
    """The gradient of the loss by every array that it depends on, by the array's identity."""
    found: dict[int, Array] = {
        id(loss): full((), 1.0, loss.dtype if loss.dtype.startswith("float") else "float32")
    }
    for name, operands, params, result in reversed(notes):
        upper = found.pop(id(result), None)
        if upper is None or not result.dtype.startswith("float"):
            continue
        if not any(isinstance(each, Array) and each.dtype.startswith("float") for each in operands):
            continue
        rule = _RULES.get(name)
        if rule is None:
            raise TensorError(f"{name} has no gradient; compute it outside of what is differentiated")
        for operand, part in zip(operands, rule(upper, result, operands, params), strict=False):
            if part is not None and isinstance(operand, Array) and operand.dtype.startswith("float"):
                part = _shrunk(part, operand.shape)  # noqa: PLW2901 - the same gradient, in the operand's shape
                known = found.get(id(operand))
                found[id(operand)] = part if known is None else known + part
    return found


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


def _shrunk(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Summed over what broadcasting repeated."""
    if gradient.shape == shape:
        return gradient
    ahead = len(gradient.shape) - len(shape)
    axes = [
        *range(ahead),
        *(ahead + at for at, size in enumerate(shape) if size == 1 and gradient.shape[ahead + at] != 1),
    ]
    return _shaped(gradient.sum(axes), shape)


def _shaped(x: Array, shape: Sequence[int]) -> Array:
    return x if x.shape == tuple(shape) else x.reshape(shape)


def _transposed(x: Array) -> Array:
    order = list(range(x.ndim))
    order[-2:] = order[:-3:-1]
    return x.transpose(*order)


def _matmul(up: Array, _y: Array, operands: Sequence[Any], _p: Any) -> Sequence[Any]:
    a, b = operands
    rows, columns = a if a.ndim > 1 else a.reshape(1, -1), b if b.ndim > 1 else b.reshape(-1, 1)
    shape = up.shape
    if a.ndim == 1:
        shape = (*shape[: len(shape) - (b.ndim > 1)], 1, *shape[len(shape) - (b.ndim > 1) :])
    if b.ndim == 1:
        shape = (*shape, 1)
    wide = _shaped(up, shape)
    return [
        _shaped(_shrunk(wide @ _transposed(columns), rows.shape), a.shape),
        _shaped(_shrunk(_transposed(rows) @ wide, columns.shape), b.shape),
    ]


def _spread(up: Array, operands: Sequence[Any], params: Any) -> Array:
    """A reduction's gradient, with the axes back in place."""
    x, (axes, keep) = operands[0], params
    if keep:
        return up
    gone = set(range(x.ndim)) if axes is None else {axis % x.ndim for axis in axes}
    return _shaped(up, [1 if at in gone else size for at, size in enumerate(x.shape)])


def _sum(up: Array, _y: Array, operands: Sequence[Any], params: Any) -> Sequence[Any]:
    return [_spread(up, operands, params) + zeros_like(operands[0])]


def _mean(up: Array, y: Array, operands: Sequence[Any], params: Any) -> Sequence[Any]:
    x = operands[0]
    return [_spread(up, operands, params) * (y.size / max(x.size, 1)) + zeros_like(x)]


def _extreme(up: Array, y: Array, operands: Sequence[Any], params: Any) -> Sequence[Any]:
    """Shared evenly where several are the largest."""
    x = operands[0]
    most = (x == _spread(y, operands, params)).astype(x.dtype)
    return [
        _spread(up, operands, params)
        * most
        / _spread(most.sum(params[0], keepdims=params[1]), operands, params)
    ]


def _pair(choose: Callable[[Any, Any], Array]) -> Rule:
    def rule(up: Array, _y: Array, operands: Sequence[Any], _p: Any) -> Sequence[Any]:
        chosen = choose(*operands)
        return [where(chosen, up, 0.0), where(chosen, 0.0, up)]

    return rule


def _pow(up: Array, _y: Array, operands: Sequence[Any], _p: Any) -> Sequence[Any]:
    x, power = operands
    if isinstance(power, Array) and power.dtype != FLOAT:  # a traced function's float is one
        raise TensorError("pow has a gradient by its base only: give the power as a number")
    return [up * (power * x ** (power - 1)) if isinstance(power, Array) or power else zeros_like(x)]


def _softmax(up: Array, y: Array, _o: Sequence[Any], axis: Any) -> Sequence[Any]:
    return [(up - (up * y).sum(axis, keepdims=True)) * y]


def _log_softmax(up: Array, y: Array, _o: Sequence[Any], axis: Any) -> Sequence[Any]:
    return [up - _exp(y) * up.sum(axis, keepdims=True)]


def _exp(x: Array) -> Array:
    return cast("Array", session.record("exp", [x]))


def _transpose(up: Array, _y: Array, _o: Sequence[Any], axes: Any) -> Sequence[Any]:
    return [up.transpose(*sorted(range(len(axes)), key=axes.__getitem__))]


def _cut(up: Array, _y: Array, operands: Sequence[Any], params: Any) -> Sequence[Any]:
    return [session.record("put", [zeros_like(operands[0]), up], params)]


def _put(up: Array, _y: Array, _o: Sequence[Any], params: Any) -> Sequence[Any]:
    return [session.record("put", [up, 0.0], params), session.record("cut", [up], params)]


def _take(up: Array, _y: Array, operands: Sequence[Any], _p: Any) -> Sequence[Any]:
    """Rows may be taken twice: a product with one-hot rows adds their gradients."""
    x, rows = operands
    chosen = one_hot(_from_start(rows.reshape(-1), x.shape[0]), x.shape[0]).astype(x.dtype)
    return [(chosen.T @ up.reshape(rows.size, elements(x.shape[1:]))).reshape(x.shape)]


def _pick(up: Array, _y: Array, operands: Sequence[Any], _p: Any) -> Sequence[Any]:
    x, columns = operands
    return [one_hot(_from_start(columns, x.shape[1]), x.shape[1]) * up.reshape(x.shape[0], 1)]


def _from_start(indices: Array, size: int) -> Array:
    """Indices that count from the end, counted from the start."""
    return where(indices < 0, indices + size, indices)


def _concatenate(up: Array, _y: Array, operands: Sequence[Any], axis: Any) -> Sequence[Any]:
    parts, at = [], 0
    place = axis % up.ndim
    for each in operands:
        size = each.shape[place]
        parts.append(up[(*[slice(None)] * place, slice(at, at + size))])
        at += size
    return parts


_RULES: dict[str, Rule] = {
    "add": lambda up, _y, _o, _p: [up, up],
    "sub": lambda up, _y, _o, _p: [up, -up],
    "mul": lambda up, _y, o, _p: [up * o[1], up * o[0]],
    "div": lambda up, y, o, _p: [up / o[1], -up * y / o[1]],
    "pow": _pow,
    "neg": lambda up, _y, _o, _p: [-up],
    "abs": lambda up, _y, o, _p: [up * sign(o[0])],
    "square": lambda up, _y, o, _p: [up * 2.0 * o[0]],
    "sign": lambda _up, _y, _o, _p: [None],
    "exp": lambda up, y, _o, _p: [up * y],
    "log": lambda up, _y, o, _p: [up / o[0]],
    "sqrt": lambda up, y, _o, _p: [up * 0.5 / y],
    "tanh": lambda up, y, _o, _p: [up * (1.0 - y * y)],
    "sigmoid": lambda up, y, _o, _p: [up * y * (1.0 - y)],
    "relu": lambda up, _y, o, _p: [up * (o[0] > 0)],
    "maximum": _pair(lambda a, b: a >= b),
    "minimum": _pair(lambda a, b: a <= b),
    "where": lambda up, _y, o, _p: [None, where(o[0], up, 0.0), where(o[0], 0.0, up)],
    "matmul": _matmul,
    "sum": _sum,
    "mean": _mean,
    "max": _extreme,
    "min": _extreme,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "reshape": lambda up, _y, o, _p: [up.reshape(o[0].shape)],
    "broadcast_to": lambda up, _y, _o, _p: [up],
    "transpose": _transpose,
    "cast": lambda up, _y, o, _p: [up.astype(o[0].dtype)],
    "cut": _cut,
    "put": _put,
    "take": _take,
    "pick": _pick,
    "concatenate": _concatenate,
}
