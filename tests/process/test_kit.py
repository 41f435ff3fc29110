"""The small helpers that every room shares: work done once, locks, caches and folders within bounds."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.process.background import BackgroundTasks, gather_or_cancel
from propeller.process.byte_lru import ByteLru
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.files import trim_folder
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.single_flight import SingleFlight


async def test_one_run_serves_all_who_ask_meanwhile() -> None:
    flight, runs, go = SingleFlight[str, int](), 0, asyncio.Event()

    async def work() -> int:
        nonlocal runs
        runs += 1
        await go.wait()
        return runs

    asked = [asyncio.create_task(flight.run("a", work)) for _ in range(5)]
    await asyncio.sleep(0)
    asked[0].cancel()  # the others still get the result
    go.set()
    assert await asyncio.gather(*asked[1:]) == [1, 1, 1, 1]
    assert await flight.run("a", work) == 2


async def test_a_failure_reaches_all_who_wait_and_the_next_one_begins_anew() -> None:
    flight, errors = SingleFlight[str, int](), [ValueError("no")]

    async def work() -> int:
        await asyncio.sleep(0)
        if errors:
            raise errors.pop()
        return 1

    results = await asyncio.gather(*(flight.run("a", work) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["no"] * 3
    assert await flight.run("a", work) == 1


async def test_close_ends_what_runs() -> None:
    flight = SingleFlight[str, bool]()
    asked = asyncio.create_task(flight.run("a", asyncio.Event().wait))
    await asyncio.sleep(0)
    await flight.close()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_the_failure_of_one_part_cancels_the_others() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await gather_or_cancel(waits(), fails())
    assert cancelled.is_set()


async def test_background_work_ends_with_its_owner() -> None:
    background, ended = BackgroundTasks("test"), asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background.spawn(waits())
    await asyncio.sleep(0)
    await background.close()
    assert ended.is_set()


async def test_periodic_work_goes_on_after_a_failure_until_its_owner_ends() -> None:
    background, runs, waits = BackgroundTasks("test"), 0, iter([0.0, 0.0, 3600.0])
    done = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise OSError("disk full")
        if runs == 3:
            done.set()

    later = background.spawn_periodic("later", work, 3600.0)
    background.spawn_periodic("work", work, lambda: next(waits), at_once=True)
    async with asyncio.timeout(10):
        await done.wait()
    assert not later.done()
    await background.close()
    assert (later.cancelled(), runs) == (True, 3)


async def test_one_holder_a_key_and_no_key_is_remembered() -> None:
    locks, inside, most = KeyedLocks(), Counter[str](), Counter[str]()

    async def work(key: str) -> None:
        async with locks.holding(key):
            inside[key] += 1
            most[key] = max(most[key], inside[key])
            await asyncio.sleep(0)
            inside[key] -= 1

    waiting = [asyncio.create_task(work(key)) for key in "abab"]
    await asyncio.sleep(0)
    assert (len(locks), dict(inside)) == (2, {"a": 1, "b": 1})
    waiting[2].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (len(locks), dict(most)) == (0, {"a": 1, "b": 1})


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path)
    first.acquire(0)
    with pytest.raises(LockedError, match=str(path)):
        second.acquire(0)
    threading.Timer(0.1, first.release).start()
    second.acquire(30)
    assert second.held
    assert not first.held
    second.release()
    second.release()


async def test_a_folder_is_locked_as_well_and_waiting_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path), FileLock(tmp_path)
    first.acquire()
    with pytest.raises(LockedError):
        await second.acquire_async(0.02)
    waiting = asyncio.create_task(second.acquire_async())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    await waiting
    second.release()


def test_a_lock_that_wants_a_folder_makes_nothing_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name, error in (("gone", FileNotFoundError), ("file", NotADirectoryError), ("link", OSError)):
        with pytest.raises(error):
            FileLock(tmp_path / name, folder=True).acquire(0)
    assert not (tmp_path / "gone").exists()
    with FileLock(tmp_path, folder=True), pytest.raises(LockedError):
        FileLock(tmp_path, folder=True).acquire(0)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys, time; from propeller.process.file_lock import FileLock\n"
        "FileLock.acquire(lock := FileLock(pathlib.Path(sys.argv[1]))); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(LockedError):
            FileLock(path).acquire(0)
        child.kill()
    with FileLock(path) as lock:
        assert os.fstat(lock.descriptor).st_ino == path.stat().st_ino


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=40))
def test_a_cache_never_holds_more_bytes_than_it_may(puts: list[tuple[int, int]]) -> None:
    cache = ByteLru[int, bytes](100, len)
    for key, size in puts:
        cache[key] = bytes(size * 2)
        assert sum(map(len, cache.values())) <= 100
        assert (key in cache) == (size <= 50)


def test_a_folder_loses_what_was_used_longest_ago(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abcd"]
    for age, file in enumerate(reversed(files)):
        file.write_bytes(bytes(10))
        os.utime(file, (0, time.time() - age))  # d is the newest
    trim_folder(tmp_path.iterdir(), 20, keep={files[0]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "d"]
    trim_folder([*tmp_path.iterdir(), tmp_path / "gone"], 20)
    assert len(list(tmp_path.iterdir())) == 2
