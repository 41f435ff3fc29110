"""Run an async service until it ends or a signal asks it to."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

from propeller.process.settings import SettingsError

Main = Callable[[asyncio.Event], Awaitable[None]]
"""A service: runs until the event is set, then closes what it opened and returns."""


def run(main: Main) -> int:
    """Run ``main`` under uvloop where there is one; SIGTERM and SIGINT set its stop event.

    Returns:
        The exit code: 0 after a clean stop, 1 when the service could not start or failed, with one line on
        standard error that says why (the log has the rest).
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_stopped(main))
    except (SettingsError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads this one
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class StartError(Exception):
    """A service cannot start; the text says what is wrong and what to do."""


async def _until_stopped(main: Main) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await main(stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
