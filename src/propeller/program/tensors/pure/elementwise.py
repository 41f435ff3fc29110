"""Operations on one element or two."""

import math
import operator
from collections.abc import Callable
from typing import Any


def _guard(function: Callable[..., Any], *errors: tuple[type[Exception], float]) -> Callable[..., Any]:
    def guarded(*values: Any) -> Any:
        try:
            return function(*values)
        except tuple(kind for kind, _ in errors) as error:
            return next(value for kind, value in errors if isinstance(error, kind))

    return guarded


def _divide(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if not x or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1, y)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def _relu(x: float) -> float:
    return x if x > 0 or math.isnan(x) else 0


UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "square": lambda x: x * x,
    "exp": _guard(math.exp, (OverflowError, math.inf)),
    "log": _log,
    "sqrt": _guard(math.sqrt, (ValueError, math.nan)),
    "tanh": math.tanh,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "not": operator.not_,
}
BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _divide,
    "pow": _guard(math.pow, (OverflowError, math.inf), (ValueError, math.nan)),
    "mod": _guard(operator.mod, (ZeroDivisionError, 0)),
    "floordiv": _guard(operator.floordiv, (ZeroDivisionError, 0)),
    "maximum": max,
    "minimum": min,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
}
