"""``propeller up``, and what ``demo`` shares with it: a stack for as long as something runs on it."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from propeller.cli.terminal import Terminal
from propeller.process.files import keep_private
from propeller.process.run import run
from propeller.stack.provisioning import device_names
from propeller.stack.up import Options, Report, stack

Body = Callable[[dict[str, Any]], Awaitable[None]]
"""What runs on a stack that is ready; it is given what ``stack.json`` holds."""


def run_on_stack(options: Options, report: Report, body: Body) -> int:
    """Start a stack, run ``body`` on it, end everything; SIGTERM and Ctrl-C end it at any moment.

    Returns:
        The exit code: 0, 1 if the stack could not start, 130 if it was interrupted before the body's end.
    """
    interrupted = False
    keep_private()

    async def main(stop: asyncio.Event) -> None:
        nonlocal interrupted
        work = asyncio.create_task(_work(options, report, body))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            interrupted = True
            print("Stopping …", flush=True)
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    return run(main) or (130 if interrupted else 0)


def tags_by_device(given: Iterable[str], proplets: int) -> dict[str, list[str]]:
    """The tags of each device that has some.

    Args:
        given: texts as ``hospital=proplet-1,proplet-2``: a tag, which may have a ``=`` in it too, and who has it.
        proplets: how many devices there are.

    Raises:
        ValueError: a text is none of these, or names a device that there is not.
    """
    found: dict[str, list[str]] = {}
    devices = device_names(proplets)
    for text in given:
        tag, equals, names = text.rpartition("=")
        tag = tag.strip()
        if not equals or not tag or "," in tag:
            raise ValueError(f"{text!r} is not TAG=NAME,…, as hospital=proplet-1,proplet-2")
        for name in map(str.strip, names.split(",")):
            if name not in devices:
                there = f"proplet-1 to {devices[-1]}" if devices else "none"
                raise ValueError(f"{text!r}: there is no {name!r}; the devices are {there} (--proplets)")
            found.setdefault(name, []).append(tag)
    return found


def run_up(
    folder: Path,
    *,
    auto_ports: bool,
    proplets: int,
    log_level: str,
    tags: Mapping[str, Sequence[str]],
    open_access: bool = False,
    host: str | None = None,
    native_python: Path | None = None,
) -> int:
    """Run a stack until SIGTERM or Ctrl-C; returns the exit code."""
    console = Terminal()
    console.print(f"Starting Propeller on {folder.absolute()}", soft_wrap=True)

    if os.environ.get("PROPELLER_AUTH") == "off" and not open_access:
        console.print(
            "PROPELLER_AUTH=off is for single services and has no effect here: --open opens a stack."
        )

    def report(what: str, where: str) -> None:
        console.print(f"  [green]✓[/] {what:<16} {where}")

    async def forever(description: dict[str, Any]) -> None:
        if open_access:
            console.print(
                "[yellow]Open:[/] every user of this machine may use the services, and read what they keep. "
                "Without --open only you may.",
                soft_wrap=True,
            )
        if host is not None:
            console.print(
                f"On the network as {host}: others need the certificate {description['ca']}, and a user or a client's id and key.",
                soft_wrap=True,
            )
        console.print(
            f"Ready: addresses, ids and keys are in {folder / 'stack.json'}. Ctrl-C ends it.", soft_wrap=True
        )
        await asyncio.Event().wait()

    code = run_on_stack(
        Options(
            folder,
            proplets,
            auto_ports,
            log_level,
            tags=tags,
            open_access=open_access,
            host=host,
            native_python=None if native_python is None else native_python.absolute(),
        ),
        report,
        forever,
    )
    if code == 1:  # it did not start, which is said; whatever else runs on the folder goes on
        return code
    console.print("Stopped.")
    return 0


async def _work(options: Options, report: Report, body: Body) -> None:
    async with stack(options, report) as description:
        await body(description)
