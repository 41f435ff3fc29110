"""Opening files in a thread, as a disk may be slow, so that none stays open, or is made later, whose task was cancelled."""

import asyncio
from collections.abc import Callable
from typing import BinaryIO, TypeVar

_File = TypeVar("_File", BinaryIO, BinaryIO | None)


async def open_in_thread(open_file: Callable[[], _File]) -> _File:
    """What ``open_file`` gives, in a thread. A task that is cancelled meanwhile ends when the thread has, with the file closed.

    Raises:
        OSError: as ``open_file`` does.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(open_file))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)  # it is called also if the file is open already
        await asyncio.wait([opening])
        raise


def _close(opening: "asyncio.Future[_File]") -> None:
    if not opening.cancelled() and opening.exception() is None and (file := opening.result()) is not None:
        file.close()
