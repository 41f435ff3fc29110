"""A connection to SQLite for the event loop: what is quick runs at once, what has to wait runs in the connection's thread.

aiosqlite hands every call to its thread, fifteen of them in a transaction of two statements, and the switches between threads take
several times as long as SQLite, which finds its pages in memory (decision 0150). Only two things wait: commits for the disk, and
the beginning of a transaction for a writer in another process.

Parts inside aiosqlite 0.22 that it uses, to be looked at before another version is allowed: ``_execute``, which every call goes
through, ``_conn``, ``_thread``.
"""

import functools
import sqlite3
from collections.abc import Callable
from typing import Any

import aiosqlite

_ROWS_AT_ONCE = 64
_PRIMARY_CODE = 0xFF
"""Of an extended result code (sqlite.org/rescode.html)."""


class LoopConnection(aiosqlite.Connection):
    """aiosqlite's connection. A query holds up the event loop for as long as it takes: ask for a page of rows, not for all."""

    def __init__(self, path: str, wait_s: float) -> None:
        """To be awaited; ``wait_s`` is how long a statement waits for a writer in another process, in seconds."""
        # Calls come from two threads, though never at the same time.
        super().__init__(
            lambda: sqlite3.connect(path, timeout=0, check_same_thread=False), iter_chunk_size=_ROWS_AT_ONCE
        )
        self._thread.daemon = True  # a process that fails without closing it must end
        self._wait_ms = int(wait_s * 1000)
        self._changes = 0
        self._last_in_thread: _Call | None = None

    async def _execute(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        call = functools.partial(fn, *args, **options)
        # What was cancelled while it waited is in the thread still: nothing overtakes it.
        if self._is_slow(fn) or (self._last_in_thread is not None and not self._last_in_thread.done):
            return await self._run_in_thread(call)
        try:
            return call()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise
        return await self._run_in_thread(functools.partial(self._wait_for_others, call))

    def _is_slow(self, fn: Callable[..., Any]) -> bool:
        """Whether it waits for the disk: the end of the connection, and the commit of a transaction that changed something."""
        if fn == self._conn.close:
            return True
        if fn != self._conn.commit:
            return False
        before, self._changes = self._changes, self._conn.total_changes
        return self._changes != before

    async def _run_in_thread(self, call: Callable[[], Any]) -> Any:
        self._last_in_thread = _Call(call)
        return await super()._execute(self._last_in_thread)  # type: ignore[no-untyped-call]

    def _wait_for_others(self, call: Callable[[], Any]) -> Any:
        self._conn.execute(f"PRAGMA busy_timeout={self._wait_ms}")
        try:
            return call()
        finally:
            self._conn.execute("PRAGMA busy_timeout=0")


class _Call:
    """A call in the thread, and whether it is done there, whoever waits for it or does not any more."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self.done = function, False

    def __call__(self) -> Any:
        try:
            return self._function()
        finally:
            self.done = True
