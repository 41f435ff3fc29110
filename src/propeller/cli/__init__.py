"""The ``propeller`` command."""

import sys


def main() -> None:
    """Run the command line; what a person did wrong is one line on standard error and exit code 1."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    from propeller.cli.app import app
    from propeller.errors import PropellerError
    from propeller.process import logs
    from propeller.process.control_characters import escape_controls

    logs.configure("propeller", level="error")  # services and stacks configure their own
    try:
        app(prog_name="propeller")  # also of python -m propeller: completion goes by it
    except PropellerError as error:
        print(f"error: {escape_controls(str(error))}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
