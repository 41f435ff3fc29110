"""The audit log: who did what, from where, with what result. Entries are only ever added, and each holds the hash of the one before.

A log is a file of JSON lines, and older ones beside it that were full: ``audit.jsonl``, ``audit-000000000001.jsonl`` … An entry:

    {"seq":7,"time":"2026-11-28T12:00:00.000000Z","service":"manager","who":{"kind":"user","id":"…","role":"operator"},
     "from":"10.0.0.7","action":"POST /tasks","status":201,"about":{"task":"…"},"prev":"<hash of 6>","hash":"<of this>"}

``hash`` is the SHA-256 of the line's bytes up to ``,"hash"``, with a closing brace; whoever changes, removes or adds an entry has to write
all that follow anew, and cannot match a hash that was noted elsewhere.
"""

import contextlib
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from propeller.errors import PropellerError, StartError
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.logs import get_logger

log = get_logger("audit")

MAX_FILE_BYTES = 64 * 1024 * 1024
"""A file that has more is set aside under the number of its first entry."""

START = "0" * 64
"""What the first entry holds as the hash of the one before."""

MAX_LINE_BYTES = 16 * 1024
_SEAL_BYTES = 128
"""Of a line, for its hash and end."""

_MAX_TEXT = 300
"""Characters of a text in an entry, of which callers choose many."""

_REPEAT_S = 60.0

_about: ContextVar[dict[str, Any] | None] = ContextVar("about", default=None)


class DamagedError(PropellerError):
    """An audit log is not what was written; the text says where."""


@contextlib.contextmanager
def collecting() -> Iterator[dict[str, Any]]:
    """What ``note`` is told in the block, in this task."""
    facts: dict[str, Any] = {}
    token = _about.set(facts)
    try:
        yield facts
    finally:
        _about.reset(token)


def note(**facts: str | int | None) -> None:
    """Have the entry of what is being done say what it is about, as ``experiment="e-1"``; no secrets, and no personal data."""
    collected = _about.get()
    if collected is not None:
        collected.update({name: value for name, value in facts.items() if value is not None})


@dataclass(frozen=True)
class Head:
    """The newest entry of a log: its number and hash."""

    seq: int = 0
    hash: str = START

    def __str__(self) -> str:
        """As it is noted elsewhere."""
        return f"{self.seq}:{self.hash}"


class AuditLog:
    """The audit log of a service, which it alone writes. Threads may share it."""

    def __init__(self, file: Path, service: str) -> None:
        """Open it; an entry that a power cut tore is cut off, which an entry then tells.

        Raises:
            StartError: the file cannot be used, another process writes it, or its end is damaged.
        """
        self._file, self._service = file.absolute(), service
        self._writing = threading.Lock()
        self._lost = 0
        self._told_at = float("-inf")
        self._sync = ThreadPoolExecutor(1, "audit")
        self._is_dirty = False
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(self._file.with_suffix(".lock"))
            self._lock.acquire(0)
            self._descriptor = _open(self._file)
            torn = _cut_torn(self._file)
            self.head = _head(self._file)
        except LockedError:
            raise StartError(
                f"PROPELLER_AUDIT_LOG: another process writes {self._file}: give each its own"
            ) from None
        except OSError as error:
            raise StartError(f"PROPELLER_AUDIT_LOG: {self._file}: {error.strerror}") from None
        except DamagedError as error:
            raise StartError(
                f"PROPELLER_AUDIT_LOG: {error}; move the file away to begin a new log, and find out who changed it"
            ) from None
        if torn:
            self.record("cut off an entry that was not written to its end", about={"bytes": torn})

    def record(
        self,
        action: str,
        *,
        who: Mapping[str, str] | None = None,
        address: str = "",
        status: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an entry; it outlasts this process from then on, and the machine a moment later.

        What cannot be written is counted, told in the service's log, and in the next entry that can.

        Args:
            action: what was done, as ``POST /tasks``.
            who: did it; the service itself, if nobody is named.
            address: from where.
            status: of HTTP, how it ended.
            about: what it is about.
        """
        with self._writing:
            facts = {name: _short(value) for name, value in (about or {}).items()}
            if self._lost:
                facts["lost_entries_before"] = self._lost
            entry: dict[str, Any] = {
                "seq": self.head.seq + 1,
                "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "service": self._service,
                "who": {name: _short(value) for name, value in (who or {"kind": "service"}).items()},
                "from": _short(address),
                "action": _short(action),
                "status": status,
                "about": facts,
                "prev": self.head.hash,
            }
            body = _encode(entry)
            digest = hashlib.sha256(body).hexdigest()
            line = _sealed(body, digest)
            try:
                self._make_room(len(line))
                _append(self._descriptor, line)
            except (OSError, DamagedError) as error:
                self._lost += 1
                self._tell_lost(error)
                return
            self._lost = 0
            self.head = Head(self.head.seq + 1, digest)
            if not self._is_dirty:
                self._is_dirty = True
                with contextlib.suppress(RuntimeError):  # it is being closed, which syncs
                    self._sync.submit(self._write_out)

    def close(self) -> None:
        """Have all entries on the disk, and let others write the log; the end of the process does so, too. Nothing is recorded after it."""
        self._sync.shutdown()
        with self._writing:
            if self._lock.held:
                os.close(self._descriptor)
                self._descriptor = -1  # the number may be another file's from now on
                self._lock.release()

    @property
    def file(self) -> Path:
        """Its newest file, for ``read_log``."""
        return self._file

    def _write_out(self) -> None:
        self._is_dirty = False
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._tell_lost(error)

    def _make_room(self, more: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if size == 0 or size + more <= MAX_FILE_BYTES:
            return
        if self._file.exists():  # else it was set aside, and the new one could not be opened
            with self._file.open("rb") as file:
                first = _parse(file.readline(MAX_LINE_BYTES), self._file)
            os.fsync(self._descriptor)
            self._file.rename(
                self._file.with_name(f"{self._file.stem}-{first['seq']:012d}{self._file.suffix}")
            )
        fresh = _open(self._file)
        os.dup2(fresh, self._descriptor, inheritable=False)
        os.close(fresh)

    def _tell_lost(self, error: OSError | DamagedError) -> None:
        now = time.monotonic()
        if now - self._told_at >= _REPEAT_S:
            self._told_at = now
            reason = str(error.strerror if isinstance(error, OSError) else error)
            log.error("the audit log cannot be written", file=str(self._file), reason=reason)


def audit_files(file: Path) -> list[Path]:
    """The files of a log whose newest is ``file``, oldest first."""
    older = sorted(file.parent.glob(f"{file.stem}-{'[0-9]' * 12}{file.suffix}"))
    return [*older, *([file] if file.exists() else [])]


def read_lines(files: Sequence[Path], after: int = 0) -> Iterator[bytes]:
    """The lines of a log with their newlines, from the one after entry ``after`` on.

    Raises:
        OSError: a file cannot be read.
        DamagedError: a line is no entry.
    """
    starts = [int(one.stem.rpartition("-")[2]) for one in files[:-1]]
    skipped = max((at for at, start in enumerate(starts) if start <= after), default=0)
    for path in files[skipped:]:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n"):
                    if path == files[-1] and len(line) < MAX_LINE_BYTES:
                        return  # just being written
                    raise DamagedError(f"{path}: {line[:60]!r} has no end")
                if _parse(line, path)["seq"] > after:
                    yield line


def read_log(file: Path, after: int = 0, limit: int | None = None) -> list[bytes]:
    """The lines of a log that is written meanwhile, as ``read_lines``; ``limit`` of them at the most.

    Raises:
        OSError: a file cannot be read.
        DamagedError: a line is no entry.
    """
    while True:
        files = audit_files(file)
        with contextlib.suppress(FileNotFoundError):
            lines = list(itertools.islice(read_lines(files, after), limit))
            if audit_files(file) == files:  # else one was set aside, and its entries were passed over
                return lines


def verify(lines: Iterator[bytes], noted: Sequence[Head] = (), where: str = "the log") -> Head:
    """See that every entry is the one that was written, and none is missing.

    Args:
        lines: of a log; from its beginning, or from the entry after one that is in ``noted``.
        noted: entries whose hashes were noted elsewhere: they must be there.
        where: how the log is called in errors.

    Returns:
        The newest entry.

    Raises:
        DamagedError: it is not; the text names the entry.
    """
    wanted = {one.seq: one for one in noted if one.seq > 0}
    head: Head | None = None
    for line in lines:
        entry = _parse(line, where)
        seq = int(entry["seq"])
        before = (Head() if seq == 1 else wanted.pop(seq - 1, None)) if head is None else head
        if before is None:
            raise DamagedError(
                f"{where}: it begins with entry {seq}; if those before are kept elsewhere, give the last of them as --head"
            )
        if seq != before.seq + 1:
            raise DamagedError(
                f"{where}: entry {seq} follows entry {before.seq}: entries are missing or were moved"
            )
        if entry["prev"] != before.hash:
            raise DamagedError(
                f"{where}: entry {seq} does not belong to the one before: one of them was changed"
            )
        signed = line.rpartition(b',"hash":')[0] + b"}"
        if hashlib.sha256(signed).hexdigest() != entry["hash"] or line != _sealed(signed, entry["hash"]):
            raise DamagedError(f"{where}: entry {seq} was changed")
        head = Head(seq, str(entry["hash"]))
        if (one := wanted.pop(seq, None)) is not None and one.hash != head.hash:
            raise DamagedError(
                f"{where}: entry {seq} is not the one that was noted: the log was written anew"
            )
    if wanted:
        last = f"entry {head.seq}" if head else "no entry"
        raise DamagedError(f"{where}: entry {min(wanted)}, which was noted, is not there; the last is {last}")
    return head or Head()


def _encode(entry: dict[str, Any]) -> bytes:
    """An entry as JSON without what is empty. Texts in which each character takes twelve bytes leave no room for all facts."""

    def encode() -> bytes:
        given = {name: value for name, value in entry.items() if value not in (None, "", {})}
        return json.dumps(given, separators=(",", ":")).encode()

    body = encode()
    if len(body) + _SEAL_BYTES > MAX_LINE_BYTES:
        entry["about"] = {"left_out": f"{len(entry['about'])} facts of {len(body)} bytes"}
        body = encode()
    return body


def _sealed(body: bytes, digest: str) -> bytes:
    return b'%s,"hash":"%s"}\n' % (body[:-1], digest.encode())


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _append(descriptor: int, line: bytes) -> None:
    """Write a line whole, or nothing of it.

    Raises:
        OSError: the disk does not take it.
    """
    size = os.fstat(descriptor).st_size
    written = os.write(descriptor, line)
    if written != len(line):
        os.ftruncate(descriptor, size)
        raise OSError(28, "no space left on the disk")


def _cut_torn(file: Path) -> int:
    """Cut off what follows the last newline; how many bytes that were."""
    with file.open("r+b") as opened:
        size = opened.seek(0, os.SEEK_END)
        start = max(0, size - MAX_LINE_BYTES)
        opened.seek(start)
        tail = opened.read()
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            opened.truncate(size - torn)
    return torn


def _head(file: Path) -> Head:
    """The newest entry of the log.

    Raises:
        DamagedError: the last line is no entry.
    """
    for path in reversed(audit_files(file)):
        with path.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - MAX_LINE_BYTES))
            lines = opened.read().splitlines(keepends=True)
        if lines:
            entry = _parse(lines[-1], path)
            return Head(int(entry["seq"]), str(entry["hash"]))
    return Head()


def _parse(line: bytes, where: object) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if (
            isinstance(entry["seq"], int)
            and isinstance(entry["hash"], str)
            and isinstance(entry["prev"], str)
        ):
            return dict(entry)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DamagedError(f"{where}: {line[:60]!r} is no entry of an audit log")


def _short(value: Any) -> Any:
    return value if isinstance(value, int) else str(value)[:_MAX_TEXT]
