"""Operations on one element or two, with NumPy's answers where Python raises an error: infinities, NaN, zeros."""

import math
import operator
from collections.abc import Callable
from typing import Any


def _divide(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if not x or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1, y)


def _floordiv(x: Any, y: Any) -> Any:
    if y:
        return x // y if isinstance(x, int) or not math.isinf(x) else math.nan
    return _divide(x, y) if isinstance(x, float) or isinstance(y, float) else 0


def _mod(x: Any, y: Any) -> Any:
    if y:
        return x % y
    return math.nan if isinstance(x, float) or isinstance(y, float) else 0


def _power(x: float, y: float) -> float:
    negative = (x < 0 or (x == 0 and math.copysign(1, x) < 0)) and y % 2 == 1
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if negative else math.inf
    except ValueError:  # a negative power of zero, or a fractional one of a negative number
        return math.nan if x else -math.inf if negative else math.inf


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def _relu(x: float) -> float:
    return x if x > 0 or x != x else 0  # noqa: PLR0124 - NaN is not itself


def _sign(x: float) -> float:
    return (x > 0) - (x < 0) if x == x else x  # noqa: PLR0124


def larger(x: Any, y: Any) -> Any:
    """The larger; NaN if one is."""
    return x if x >= y or x != x else y  # noqa: PLR0124


def smaller(x: Any, y: Any) -> Any:
    """The smaller; NaN if one is."""
    return x if x <= y or x != x else y  # noqa: PLR0124


UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "abs": abs,
    "sign": _sign,
    "square": lambda x: x * x,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
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
    "pow": _power,
    "mod": _mod,
    "floordiv": _floordiv,
    "maximum": larger,
    "minimum": smaller,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
}
