"""Limits that a task asks for: lower ones than its proplet's own. A proplet takes the smaller of the two."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

WALL_TIME = "wall_time_s"

_MOST = 2**53 - 1  # every JSON reader keeps it exact

NAMES = (
    WALL_TIME,
    "fuel",
    "memory_bytes",
    "table_elements",
    "stdout_bytes",
    "stderr_bytes",
    "out_bytes",
    "out_files",
    "module_bytes",
    "tensor_bytes",
    "tensor_handles",
)
"""Seconds; Wasm instructions; bytes and numbers (docs/reference.md). Those of the compilation are the proplet's alone."""


def check(limits: Any) -> dict[str, int | float] | None:
    """Known names and numbers above 0; whole ones but for seconds. Nothing asked for is ``None``.

    A name that is not known is refused also where messages are read tolerantly: a limit that is not kept is none.

    Raises:
        ValueError: naming the limit and what is wrong with it.
    """
    if limits is None:
        return None
    if not isinstance(limits, Mapping):
        raise ValueError('must be an object, as {"wall_time_s": 60}')  # noqa: TRY004 - pydantic's convention
    for name, value in limits.items():
        if name not in NAMES:
            raise ValueError(f"{str(name)[:80]!r} is no limit; there are {', '.join(NAMES)}")
        wanted = (int, float) if name == WALL_TIME else (int,)
        if isinstance(value, bool) or not isinstance(value, wanted):
            kind = "a number of seconds" if name == WALL_TIME else "a whole number"
            raise ValueError(f"{name} must be {kind}")  # noqa: TRY004
        if not 0 < value <= _MOST:
            raise ValueError(f"{name} must be above 0 and at most {_MOST}")
    return dict(limits) or None


TaskLimits = Annotated[dict[str, int | float] | None, BeforeValidator(check)]
"""What a task may use at most, by the limit's name."""
