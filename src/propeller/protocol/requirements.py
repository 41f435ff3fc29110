"""What a native program requires of a device's interpreter, and what a device has."""

from typing import Annotated

from pydantic import Field

from propeller.native_program import MAX_DEPENDENCIES, MAX_REQUIREMENT_CHARACTERS
from propeller.protocol.wire import Message

MAX_DISTRIBUTIONS = 1000
"""The most that a device tells of; with their names and versions some 30 kB."""

_Text = Annotated[str, Field(max_length=MAX_REQUIREMENT_CHARACTERS)]
_Name = Annotated[str, Field(max_length=128)]


class Requirements(Message):
    """What a native program requires: versions of Python, and distributions (PEP 508)."""

    python: _Text = ""
    dependencies: Annotated[list[_Text], Field(max_length=MAX_DEPENDENCIES)] = Field(default_factory=list)


class NativePython(Message):
    """A device's interpreter for native programs."""

    version: _Name
    distributions: Annotated[dict[_Name, _Name], Field(max_length=MAX_DISTRIBUTIONS)] = Field(
        default_factory=dict
    )
    """Versions by the canonical names of what is installed there."""
    complete: bool = True
    """Whether these are all of them."""
