"""One service in this process; ``python -m propeller.stack.serve SERVICE LOG_FILE`` runs one in an interpreter of its own."""

import asyncio
import os
import sys
from pathlib import Path

from propeller.process import logs
from propeller.process.files import keep_private
from propeller.process.run import run
from propeller.process.settings import LogSettings, SettingsError
from propeller.stack.services import find_service
from propeller.stack.unread_variables import warn_of_misspelt_variables, warn_of_unsupported_variables

PARENT_FD = "PROPELLER_PARENT_FD"
"""Environment variable: a pipe's end; when it closes, the process that started this one is gone."""


def serve(service: str, *, log_file: Path | None = None, insecure: bool = False) -> int:
    """Run a service, configured by its environment, until it is told to stop.

    Returns:
        The exit code of the process.

    Raises:
        StartError: there is no such service.
    """
    spec = find_service(service)
    keep_private()
    level = os.environ.get(spec.log_level_variable) or os.environ.get("PROPELLER_LOG_LEVEL") or "info"
    try:
        settings = LogSettings.load()
        logs.configure(
            service,
            level=level,
            file=log_file,
            max_bytes=settings.max_bytes,
            remember=spec.has_http,
            form=settings.form,
        )
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it
        return 1
    if insecure:
        os.environ["PROPELLER_INSECURE"] = "true"

    async def main(stop: asyncio.Event) -> None:
        kind = spec.load_settings_class()
        settings = kind.load()
        warn_of_unsupported_variables(spec.unsupported)
        warn_of_misspelt_variables(kind, [spec.log_level_variable, *spec.unsupported])
        start = spec.load_main()
        _stop_with_parent(stop)
        await start(settings, stop)

    return run(main)


def _stop_with_parent(stop: asyncio.Event) -> None:
    descriptor = os.environ.pop(PARENT_FD, "")
    if not descriptor:
        return
    loop = asyncio.get_running_loop()
    number = int(descriptor)

    def closed() -> None:
        loop.remove_reader(number)
        stop.set()

    loop.add_reader(number, closed)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], log_file=Path(sys.argv[2])))
