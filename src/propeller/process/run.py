"""Run an async service until it ends or a signal asks it to; the errors of one that cannot start."""

import asyncio
import errno
import gc
import signal
import sys
from collections.abc import Awaitable, Callable

from propeller.errors import StartError
from propeller.process.logs import get_logger
from propeller.process.settings import SettingsError

log = get_logger("run")

_STARTED_AFTER_S = 2.0
"""When a service has made what it keeps for as long as it lives, in seconds after its start."""

Main = Callable[[asyncio.Event], Awaitable[None]]
"""A service: runs until the event is set, then closes what it opened and returns."""


def run(main: Main) -> int:
    """Run ``main`` under uvloop where there is one; SIGTERM and SIGINT set its stop event, the second one ends it.

    Returns:
        The exit code: 0 after a clean stop, 1 when the service could not start or failed, with one line on
        standard error that says why (the log has the rest), 130 when it was ended before it had stopped.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_stopped(main))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except Exception as error:  # noqa: BLE001 - nothing above this reports it
        return _failed(error)
    return 0


def cannot_listen(name: str, host: str, port: int, variable: str, error: OSError) -> StartError:
    """The error of a service that cannot listen: the port, the process that has it if that can be seen, and the remedy.

    Args:
        name: of the service.
        host: the address that it was to listen on.
        port: the port likewise.
        variable: the setting that chooses the port; empty if there is none.
        error: what the system said.
    """
    setting = f" ({variable})" if variable else ""
    if error.errno != errno.EADDRINUSE:
        return StartError(f"{name}: cannot listen on {host}:{port}{setting}: {error.strerror}")
    process = listening_process(port)
    by = f" by {process}" if process else ""
    other = f"choose another port with {variable}" if variable else "choose another port"
    return StartError(
        f"{name}: port {port} is already in use{by}; stop what listens there, or {other} "
        "(propeller up --ports auto takes free ones)"
    )


def listening_process(port: int) -> str | None:
    """The process that listens on a port, as far as this user may see it."""
    import psutil  # for the error alone

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return None


def _failed(error: Exception) -> int:
    known = _known_cause(error)
    if known is None:
        log.error("the service failed", exc_info=error)
    print(f"error: {known or f'{type(error).__name__}: {error}'}", file=sys.stderr)  # noqa: T201 - a person reads it
    return 1


def _known_cause(error: Exception) -> Exception | None:
    """The error that tells a person what to do, also from inside a task group."""
    if isinstance(error, ExceptionGroup):
        return next((known for inner in error.exceptions if (known := _known_cause(inner))), None)
    return error if isinstance(error, SettingsError | StartError) else None


async def _until_stopped(main: Main) -> None:
    stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop_or_cancel() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_cancel)
    # A full collection that looks at all modules takes 100 ms, in which nobody is answered.
    loop.call_later(_STARTED_AFTER_S, gc.freeze)
    await main(stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
