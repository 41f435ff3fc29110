"""Arrays as text: their values, the outer ones of large arrays."""

from typing import Any

from propeller.tensors import session
from propeller.tensors.tape import MainTape

_MOST = 100
"""Elements that are shown in full."""

_EDGE = 3
"""Of a longer axis, what is shown at each end."""


def values(x: Any, indent: int = 0) -> str | None:
    """The elements in brackets, a line a row; None inside a traced function, where there are none.

    Only what is shown is read.
    """
    if session.tracing() or not isinstance(x.tape, MainTape):
        return None
    gaps = [x.size > _MOST and size > 2 * _EDGE for size in x.shape]
    for axis, gap in enumerate(gaps):
        if gap:
            x = _ends(x, axis)
    return _nested(x.tolist(), gaps, indent)


def _ends(x: Any, axis: int) -> Any:
    # On the tape itself: what is only shown is no part of a gradient.
    tape = session.main()
    whole = [[0, size, 1] for size in x.shape[:axis]]
    parts = [tape.record("cut", (x,), [*whole, [start, _EDGE, 1]]) for start in (0, x.shape[axis] - _EDGE)]
    return tape.record("concatenate", parts, axis)


def _nested(value: Any, gaps: list[bool], indent: int) -> str:
    if not isinstance(value, list):
        return _number(value)
    parts = [_nested(each, gaps[1:], indent + 1) for each in value]
    if gaps[0]:
        parts.insert(_EDGE, "...")
    between = ", " if len(gaps) == 1 else ",\n" + " " * (indent + 1)
    return f"[{between.join(parts)}]"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6g}"
    return f"{text}.0" if text.lstrip("-").isdigit() else text
