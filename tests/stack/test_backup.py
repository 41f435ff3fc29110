"""Backups of a state folder: what is in them, and what is no backup."""

import functools
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import StartError
from propeller.stack import backup
from propeller.stack.backup import CONTENTS, BackupError, back_up, restore
from propeller.stack.state_folder import StateFolder
from support.net import wait_until

KEPT = {
    "secrets.json": b'{"broker":"b","admin_username":"a","admin_password":"p"}',
    ".env": b"A=1",
    "identity/identity.db": b"rows",
    "identity/identity.db-wal": b"newer rows",
    "coordinator/updates/sha256-1": b"an update",
    "model-registry/global_model_v1.safetensors": b"a model",
    "oci-registry/blobs/sha256/00": b"a blob",
    "broker/store/jetstream/x.blk": b"messages",
    "proplet-1/outbox/1.json": b"{}",
    "audit/manager/audit.jsonl": b"",
    "certs/ca.pem": b"ca",
}
LEFT_OUT = (
    "lock", "stack.json", "logs/manager.log", "programs/x.native", "proxy/blobs/x", "aggregator/x",
    "identity/identity.db-shm", "identity/identity.db.identity.lock", "proplet-1/sandbox/x", "proplet-1/heartbeat",
    "coordinator/large/x.part", "oci-registry/uploads/x",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    for name, content in {**KEPT, **dict.fromkeys(LEFT_OUT, b"x")}.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_a_stack_keeps_is_saved_and_restored_for_its_user_alone(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    saved = back_up(folder, tmp_path / "b.tar.zst")
    assert (saved.files, saved.stopped_s) == (len(KEPT), None)
    assert stat.S_IMODE(saved.file.stat().st_mode) == 0o600
    after = contents(folder)
    unchanged = before.keys() - {"stack.json", "lock"}  # none runs, and the lock was held
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert not list(folder.glob(".backup-*"))
    assert restore(saved.file, tmp_path / "new") == len(KEPT)
    assert contents(tmp_path / "new") == KEPT
    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert {path.name for path in tmp_path.iterdir()} == {"state", "new", "b.tar.zst"}


def test_it_leaves_the_process_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        restore(back_up(folder, tmp_path / "b").file, tmp_path / "new")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_files_that_never_change_are_linked_and_not_copied(folder: Path, tmp_path: Path) -> None:
    backup._copy(folder, tmp_path / "staging", float("inf"))  # noqa: SLF001
    links = {
        name for name in KEPT if (tmp_path / "staging" / name).stat().st_ino == (folder / name).stat().st_ino
    }
    assert links == {
        "coordinator/updates/sha256-1", "model-registry/global_model_v1.safetensors", "oci-registry/blobs/sha256/00",
    }  # fmt: skip
    with pytest.raises(BackupError, match="end the stack, and back up then"):
        backup._copy(folder, tmp_path / "other", 0.0)  # noqa: SLF001


def test_what_cannot_be_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="is not the state folder of a stack"):
        back_up(tmp_path, tmp_path / "b")
    saved = back_up(folder, tmp_path / "b")
    with pytest.raises(BackupError, match="is there already"):
        back_up(folder, tmp_path / "b")
    other = tmp_path / "c.part"
    other.touch()
    with pytest.raises(BackupError, match=r"c\.part is there: another backup writes it, or one was killed"):
        back_up(folder, tmp_path / "c")
    assert other.exists()
    with pytest.raises(BackupError, match="No such file or directory"):
        back_up(folder, tmp_path / "none" / "b")
    with pytest.raises(BackupError, match="is not empty: restore into a new folder"):
        restore(saved.file, folder)
    with pytest.raises(BackupError, match="none: No such file"):
        restore(tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return zstandard.ZstdCompressor().compress(file.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
    return made


SAID = json.dumps({"format": 1, "version": "x", "files": {}}).encode()


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"", "is damaged or no backup"),
        (b"not zstd", "is damaged or no backup"),
        (packed(), "its end is missing"),
        (packed((member("../evil"), b"x")), "'../evil' does not belong into a backup"),
        (packed((member("/evil"), b"x")), "'/evil' does not belong into a backup"),
        (packed((member("evil", tarfile.SYMTYPE), b"")), "'evil' does not belong into a backup"),
        (packed((member(CONTENTS), SAID), (member("more"), b"x")), "'more' does not belong"),
        (packed((member("a"), b"x"), (member(CONTENTS), SAID)), "is damaged: a is not what was saved"),
        (packed((member(CONTENTS), b'{"format":2,"version":"9"}')), "made by a newer version, 9"),
        (packed((member(CONTENTS), b"[")), "is damaged or no backup"),
        (packed((member(CONTENTS), b"[]")), "does not say what is in it"),
        (packed((member(CONTENTS), b'{"format":1,"files":["a"]}')), "does not say what is in it"),
    ],
)
def test_what_is_no_backup_leaves_nothing(tmp_path: Path, archive: bytes, message: str) -> None:
    (tmp_path / "b").write_bytes(archive)
    with pytest.raises(BackupError, match=message):
        restore(tmp_path / "b", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


@functools.cache
def an_archive() -> bytes:
    """One for all examples: the next one would have another time in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "state").mkdir()
        (folder / "state" / "secrets.json").write_bytes(KEPT["secrets.json"] * 20)
        return back_up(folder / "state", folder / "b").file.read_bytes()


@given(cut=st.booleans(), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_damaged_backup_is_never_restored(
    tmp_path_factory: pytest.TempPathFactory, cut: bool, place: float, bit: int
) -> None:
    folder, archive = tmp_path_factory.mktemp("damaged"), bytearray(an_archive())
    position = int(place * len(archive))
    if cut:
        archive = archive[:position]
    else:
        archive[position] ^= 1 << bit
    (folder / "b").write_bytes(archive)
    try:
        restore(folder / "b", folder / "new")
    except BackupError:
        assert not (folder / "new").exists()
    else:  # a bit of the frame's header that says nothing of the content
        assert contents(folder / "new") == {"secrets.json": KEPT["secrets.json"] * 20}


STOPS = """
import os, signal, sys, psutil
from propeller.stack.backup import _stopped
with _stopped([psutil.Process(int(sys.argv[1]))]):
    print("stopped", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_services_go_on_when_a_backup_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as service:
        try:
            command = [sys.executable, "-c", STOPS, str(service.pid)]
            killed = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "stopped\n")
            running = psutil.Process(service.pid)
            wait_until(lambda: running.status() != psutil.STATUS_STOPPED)
        finally:  # also when it still stands still
            service.kill()


def test_no_stack_starts_where_one_is_restored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, target = tmp_path / "b.backup", tmp_path / "new"
    back_up(folder, archive)
    read: Any = getattr(backup, "_read_archive")  # noqa: B009 - what takes the time
    seen = []

    def meanwhile(source: Path, staging: Path) -> int:
        for other in (StateFolder(target).lock, lambda: restore(archive, target)):
            with pytest.raises(StartError) as refused:
                other()
            seen.append(str(refused.value))
        return int(read(source, staging))

    monkeypatch.setattr(backup, "_read_archive", meanwhile)
    assert restore(archive, target) == len(KEPT)
    assert f"or is restored there (process {os.getpid()})" in seen[0]
    assert "is not empty" in seen[1]
    assert contents(target) == KEPT
    StateFolder(target).lock()


@pytest.mark.parametrize("was_there", [False, True])
def test_a_restore_that_fails_leaves_the_folder_as_it_was(tmp_path: Path, *, was_there: bool) -> None:
    archive, target = tmp_path / "b.backup", tmp_path / "new"
    archive.write_bytes(b"no backup")
    if was_there:
        target.mkdir()
    with pytest.raises(BackupError, match="damaged or no backup"):
        restore(archive, target)
    assert target.exists() is was_there
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["b.backup", *(["new"] if was_there else [])]
    )
    if was_there:
        assert list(target.iterdir()) == []
