"""Which services of a stack wait as standbys, since another process owns their database (decision 0215)."""

import re
from pathlib import Path

import psutil

from propeller.process.file_lock import read_holder

_LOCKS = "*/*.db.*.lock"
_OWNER = re.compile(r"process (\d+) on ")


def foreign_owners(folder: Path, process: int) -> dict[str, str]:
    """Who owns the databases in a state folder that its own stack does not own: a text for a person, by the names of the services.

    Args:
        folder: the state folder.
        process: the stack's: its children are its services.
    """
    try:
        top = psutil.Process(process)
        own = {process, *(one.pid for one in top.children(recursive=True))}
    except psutil.NoSuchProcess:
        own = set()
    found = {}
    for lock in sorted(folder.glob(_LOCKS)):
        owner = read_holder(lock)
        match = _OWNER.match(owner or "")
        if (
            owner is not None and match is not None and int(match[1]) not in own
        ):  # it says nothing if the disk was full
            service = lock.name.removesuffix(".lock").rpartition(".")[2]
            found[service] = f"standby: {lock.name.rpartition(f'.{service}.lock')[0]} is owned by {owner}"
    return found
