"""Which proplet runs a task: the least loaded of the live ones, in turn among equals. Pure."""

from collections.abc import Mapping


def choose(loads: Mapping[str, int], last: str | None = None) -> str | None:
    """The proplet to run the next task.

    Args:
        loads: how many tasks run on each live proplet.
        last: the proplet chosen before; the turn goes to the next id after it, then round again.

    Returns:
        One of ``loads``, or ``None`` if there is none.
    """
    if not loads:
        return None
    lowest = min(loads.values())
    idle = sorted(proplet_id for proplet_id, load in loads.items() if load == lowest)
    return next((proplet_id for proplet_id in idle if last is None or proplet_id > last), idle[0])
