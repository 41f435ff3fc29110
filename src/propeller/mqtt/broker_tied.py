"""Run as a script: become another program that the kernel ends when the process that started it ends.

``python broker_tied.py PARENT_PID PROGRAM ARGUMENT…``. Without this, ``kill -9`` of the parent would leave the program
running on its ports. Where the kernel has no such signal (not Linux) the program is only started.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Set the signal, see that the parent still lives, and become the program."""
    parent, program = int(arguments[0]), arguments[1]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the signal was set
            return
    os.execv(program, arguments[1:])  # noqa: S606 - the program that the broker chose


if __name__ == "__main__":
    main(sys.argv[1:])
