"""Starts an external runtime: bounds its own process, then becomes the runtime.

Run as ``python -I -S -c CODE FOLDER PARENT NICE LIMITS RUNTIME ARGUMENT…`` by ``external.py``; standard library only.
"""

import json
import os
import sys

from propeller.wasm import guard


def main() -> None:
    """Become the runtime; exits with 127 if it cannot be run."""
    parent, nice, limits, runtime, *arguments = sys.argv[2:]
    guard.isolate(int(parent), int(nice))
    guard.limit(**json.loads(limits))
    os.umask(0o077)
    try:
        os.execv(runtime, [runtime, *arguments])  # noqa: S606 - the operator's own program
    except OSError as error:
        sys.stderr.write(f"{runtime}: {error.strerror}\n")
        sys.exit(127)
