"""What a device's owner gives to tasks, for programs that are run on this machine without a proplet."""

import os
from dataclasses import replace

from propeller.errors import StartError
from propeller.protocol.wire import read_count
from propeller.wasm.program_run import MIB, Limits

MEMORY_SETTING = "PROPLET_TASK_MEMORY"

NATIVE_MEMORY_BYTES = 2048 * MIB
"""What a task may have where native programs run and the owner says nothing: the import of a large library alone takes more than a Wasm program needs."""


def owners_limits(limits: Limits, *, native: bool) -> Limits:
    """Limits with the memory that the environment says, as on a device.

    Args:
        limits: with which memory Wasm programs have where it says nothing.
        native: whether it is for a native program.

    Raises:
        StartError: It is no number of bytes.
    """
    given = os.environ.get(MEMORY_SETTING)
    if not given:
        return replace(limits, memory_bytes=NATIVE_MEMORY_BYTES) if native else limits
    memory = read_count(given, 16)
    if memory is None or memory < MIB:
        raise StartError(f"{MEMORY_SETTING}: {given!r:.40} is no number of bytes, of 1048576 or more")
    return replace(limits, memory_bytes=memory)
