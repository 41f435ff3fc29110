#!/usr/bin/env python3
"""Make the guide's domain, channel and clients, and write their ids and keys to deploy/.env.

    python3 examples/fl-demo/provision.py [--rotate] [--env-file FILE] [--identity-url URL]
    python3 examples/fl-demo/provision.py clear

It is ``propeller provision`` with the file of this repository, from whatever folder it is run.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"


def main() -> None:
    """Hand over to the command, run by the interpreter that has it."""
    try:
        from propeller.cli import main as propeller
    except ModuleNotFoundError:
        if not PYTHON.exists() or Path(sys.prefix) == PYTHON.parents[1]:
            sys.exit("error: propeller is not installed; run 'make setup' in the repository first")
        os.execv(PYTHON, [str(PYTHON), *sys.argv])  # noqa: S606 - this same script
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--env-file" for argument in arguments):
        arguments += ["--env-file", os.path.relpath(ROOT / "deploy" / ".env")]
    sys.argv = ["propeller", "provision", *arguments]
    propeller()


if __name__ == "__main__":
    main()
