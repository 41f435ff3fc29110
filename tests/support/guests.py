"""Small Wasm guests, written as text, and running them in a sandbox."""

from pathlib import Path

import wasmtime

from propeller.digests import digest_of
from propeller.wasm.sandbox import Sandbox

WASI = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory"
    (func $path_create_directory (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $path_symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $path_unlink_file (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $fd_filestat_set_size (param i32 i64) (result i32)))
  (import "wasi_snapshot_preview1" "path_link"
    (func $path_link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
"""

IN, OUT = 3, 4
"""The guest's descriptors of ``/in`` and ``/out``."""

WRITE = """
  (func $write (param $fd i32) (param $at i32) (param $size i32) (result i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $size))
    (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
"""


def wat(body: str, *, data: str = "") -> bytes:
    """A module with WASI's functions, ``$write``, a memory with ``data`` at 64, and ``body``."""
    text = f'(module {WASI} {WRITE} (data (i32.const 64) "{data}") {body})'
    return bytes(wasmtime.wat2wasm(text))


def command(code: str, *, data: str = "", more: str = "") -> bytes:
    """A command: ``code`` is the body of ``_start``; ``more`` is beside it."""
    return wat(f'{more} (func (export "_start") (local $i i32) {code})', data=data)


async def add(sandbox: Sandbox, wasm: bytes) -> str:
    """Give a program to a sandbox; its digest."""
    digest = digest_of(wasm)
    await sandbox.add(digest, wasm)
    return digest


def children(pid: int) -> list[int]:
    """The processes that are children of ``pid``."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(place.parent.name))
    return found


def is_waiting(pid: int) -> bool:
    """Whether a child of a template waits for a task: it sleeps, and has not given up what a task gives up before it runs."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return "State:\tS" in status and "NoNewPrivs:\t0\n" in status
    except (FileNotFoundError, ProcessLookupError):
        return False
