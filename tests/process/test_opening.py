"""Files that a thread opens, and what becomes of them when the task that waits for one is cancelled."""

import asyncio
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from propeller.process.opening import open_in_thread


async def test_it_gives_the_file_or_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await open_in_thread(lambda: (tmp_path / "f").open("rb"))
    with await open_in_thread(lambda: (tmp_path / "f").open("wb")) as file:
        file.write(b"1")
    assert (tmp_path / "f").read_bytes() == b"1"


@pytest.mark.parametrize("opened_before", [True, False])
async def test_of_a_task_that_is_cancelled_the_file_is_closed_when_it_ends(
    tmp_path: Path, opened_before: bool
) -> None:
    files: list[BinaryIO] = []
    begun, go_on = threading.Event(), threading.Event()

    def open_file() -> BinaryIO:
        begun.set()
        assert go_on.wait(20)
        files.append((tmp_path / "f").open("wb"))
        return files[0]

    task = asyncio.create_task(open_in_thread(open_file))
    await asyncio.to_thread(begun.wait, 20)
    if opened_before:  # in the thread; the task has not been told
        go_on.set()
        while not files:
            threading.Event().wait(0.001)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    (file,) = files
    assert file.closed


async def test_an_error_of_one_that_is_cancelled_is_nobodys() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def open_file() -> BinaryIO:
        begun.set()
        assert go_on.wait(20)
        raise OSError

    task = asyncio.create_task(open_in_thread(open_file))
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
