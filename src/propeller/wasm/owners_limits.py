"""What a device's owner gives to tasks, for programs that are run on this machine without a proplet."""

import os
from dataclasses import replace

from propeller.errors import StartError
from propeller.protocol.wire import read_count
from propeller.wasm.program_run import MIB, Limits

MEMORY_SETTING = "PROPLET_TASK_MEMORY"


def owners_limits(limits: Limits) -> Limits:
    """Limits with the memory that the environment says, as on a device: the import of a large library alone takes more than the default.

    Raises:
        StartError: It is no number of bytes.
    """
    given = os.environ.get(MEMORY_SETTING)
    if not given:
        return limits
    memory = read_count(given, 16)
    if memory is None or memory < MIB:
        raise StartError(f"{MEMORY_SETTING}: {given!r:.40} is no number of bytes, of 1048576 or more")
    return replace(limits, memory_bytes=memory)
