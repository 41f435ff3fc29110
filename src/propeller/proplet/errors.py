"""Why a task, or the fetch of its program, cannot go on."""

from collections.abc import Mapping

from propeller.errors import InvalidError, PropellerError


class TaskError(PropellerError):
    """A task cannot go on; the text is what the manager is told.

    ``usage``: what its run took until then, if it ran.
    """

    def __init__(self, text: str, usage: Mapping[str, float] | None = None) -> None:
        super().__init__(text)
        self.usage = usage or {}


class ChunkError(InvalidError):
    """A chunk that cannot be part of the program; it is left out and the text says why."""


class AssemblyError(InvalidError):
    """All chunks came, but they are not the program that was announced."""
