"""A child process that ends with the process that started it, also when that one is killed.

Run as a script it becomes another program: ``python parent_death.py PARENT_PID PROGRAM ARGUMENT…``. Without this,
``kill -9`` of the parent would leave the program running on its ports. The standard library alone, as it is run by path.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent_pid: int) -> bool:
    """Have the kernel kill this process when its parent ends; nothing happens where it has no such signal (not Linux).

    Returns:
        Whether ``parent_pid`` is still the parent; if not, it ended before the signal was set, and the caller should end.
    """
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent_pid


def adopt_orphans() -> None:
    """Have processes that descend from this one become its children when their own parents end (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main(arguments: list[str]) -> None:
    """Become the program that the arguments name."""
    parent_pid, program = int(arguments[0]), arguments[1]
    if die_with_parent(parent_pid):
        os.execv(program, arguments[1:])  # noqa: S606 - the program that the caller chose


if __name__ == "__main__":
    main(sys.argv[1:])
