"""A program sent ahead to devices, as ``push --prefetch`` and ``run --prefetch`` do it."""

from collections import Counter
from collections.abc import Mapping

from propeller.cli.terminal import Terminal
from propeller.errors import PropellerError
from propeller.sdk import Propeller

_SHOWN = 10
"""Failures that are named."""


def prefetch_program(
    fl: Propeller, reference: str, console: Terminal, *, limits: Mapping[str, float] | None = None
) -> None:
    """Have every device that is alive fetch and compile a program, and say what came of it.

    Raises:
        PropellerError: some could not; each is named with its reason.
    """
    with Terminal(stderr=True).status("Sending the program ahead …") as status:

        def show(doing: Mapping[str, str]) -> None:
            counts = Counter(stage or "waiting" for stage in doing.values())
            status.update(
                "Sending the program ahead: " + ", ".join(f"{n} {what}" for what, n in counts.items())
            )

        found = fl.prefetch(reference, limits=limits, on_change=show)
    if found.done:
        count = f"{len(found.done)} device{'' if len(found.done) == 1 else 's'}"
        console.print(f"Prefetched: {count} in {found.seconds:.1f} s", soft_wrap=True)
    if found.failures:
        lines = [f"{name}: {reason}" for name, reason in list(found.failures.items())[:_SHOWN]]
        more = len(found.failures) - len(lines)
        if more:
            lines.append(f"and {more} more")
        raise PropellerError(f"prefetch: {'; '.join(lines)}")
