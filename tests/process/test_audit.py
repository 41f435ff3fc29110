"""The audit log: entries in a chain, on the disk, through crashes, full disks and those who change it."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.process import audit
from propeller.process.audit import (
    START,
    AuditLog,
    DamagedError,
    Head,
    audit_files,
    collecting,
    note,
    read_lines,
    read_log,
    verify,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "manager" / "audit.jsonl"


def written(file: Path, count: int) -> Head:
    log = AuditLog(file, "manager")
    try:
        for number in range(count):
            log.record(
                "POST /tasks",
                who={"kind": "user", "id": "ann"},
                address="10.0.0.7",
                status=201,
                about={"task": number},
            )
        return log.head
    finally:
        log.close()


def lines_of(file: Path) -> list[bytes]:
    return list(read_lines(audit_files(file)))


def test_entries_say_who_did_what_and_go_on_after_a_restart(file: Path) -> None:
    written(file, 2)
    head = written(file, 1)
    entries = [json.loads(line) for line in lines_of(file)]
    assert [entry["seq"] for entry in entries] == [1, 2, 3]
    assert entries[0]["prev"] == START
    assert entries[2]["prev"] == entries[1]["hash"]
    first = entries[0]
    assert (first["service"], first["who"], first["from"]) == (
        "manager", {"kind": "user", "id": "ann"}, "10.0.0.7",
    )  # fmt: skip
    assert (first["action"], first["status"], first["about"]) == ("POST /tasks", 201, {"task": 0})
    assert verify(iter(lines_of(file))) == head
    assert oct(file.stat().st_mode & 0o777) == "0o600"


@given(st.data())
def test_whatever_is_changed_removed_added_or_moved_is_found(data: st.DataObject) -> None:
    lines = LINES
    at = data.draw(st.integers(0, len(lines) - 1))
    kind = data.draw(st.sampled_from(["change", "remove", "repeat", "swap", "cut"]))
    changed = list(lines)
    noted = [Head(len(lines), json.loads(lines[-1])["hash"])]
    match kind:
        case "change":
            line = bytearray(lines[at])
            position = data.draw(st.integers(0, len(line) - 2))
            line[position] = data.draw(st.integers(32, 126).filter(lambda one: one != line[position]))
            changed[at] = bytes(line)
        case "remove":
            del changed[at]
        case "repeat":
            changed.insert(at, lines[at])
        case "swap":
            other = data.draw(st.integers(0, len(lines) - 1).filter(lambda one: one != at))
            changed[at], changed[other] = changed[other], changed[at]
        case "cut":
            changed = changed[:at]
    with pytest.raises(DamagedError):
        verify(iter(changed), noted)


def _made_lines() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "audit.jsonl"
        written(file, 6)
        return lines_of(file)


LINES = _made_lines()


def test_a_log_that_was_written_anew_is_found_by_what_was_noted(file: Path) -> None:
    head = written(file, 3)
    file.unlink()
    written(file, 4)
    assert verify(iter(lines_of(file))).seq == 4
    with pytest.raises(DamagedError, match="entry 3 is not the one that was noted"):
        verify(iter(lines_of(file)), [head])


def test_only_the_end_of_a_log_can_be_verified_too(file: Path) -> None:
    early = written(file, 3)
    head = written(file, 2)
    assert verify(read_lines(audit_files(file), after=3), [early]) == head
    with pytest.raises(DamagedError, match="it begins with entry 4"):
        verify(read_lines(audit_files(file), after=3))


KILLED = """
import sys
from pathlib import Path
from propeller.process.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), "manager")
number = 0
while True:
    number += 1
    log.record("POST /tasks", about={"number": number})
    print(number, flush=True)
"""


def test_what_was_recorded_outlives_kill_9(file: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in itertools.islice(process.stdout, 50):
                told = int(line)
        finally:
            process.kill()
    found = [json.loads(line) for line in lines_of(file)]
    assert [entry["about"]["number"] for entry in found[:told]] == list(range(1, told + 1))
    head = written(file, 1)
    assert verify(iter(lines_of(file))) == head


def test_a_torn_entry_is_cut_off_and_that_is_told(file: Path) -> None:
    written(file, 2)
    with file.open("ab") as opened:
        opened.write(b'{"seq":3,"time":"20')
    assert len(lines_of(file)) == 2, "whoever reads it meanwhile waits for the rest"
    written(file, 1)
    entries = [json.loads(line) for line in lines_of(file)]
    assert entries[2]["action"].startswith("cut off an entry")
    assert entries[2]["about"] == {"bytes": 19}
    assert verify(iter(lines_of(file))).seq == 4


def test_full_files_are_set_aside_and_the_chain_goes_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 1000)
    head = written(file, 20)
    files = audit_files(file)
    assert len(files) > 3
    assert verify(iter(lines_of(file))) == head
    for after in range(20):
        assert json.loads(next(iter(read_lines(files, after))))["seq"] == after + 1
    assert written(file, 1).seq == 21


@pytest.mark.parametrize("after", [0, 1])
def test_entries_that_are_set_aside_while_they_are_read_are_not_passed_over(
    file: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    log = AuditLog(file, "manager")
    for _ in range(3):
        log.record("x")
    read, looks = audit.read_lines, itertools.count()

    def read_late(files: Sequence[Path], since: int) -> Iterator[bytes]:
        if next(looks) == 0:
            with monkeypatch.context() as patched:
                patched.setattr(audit, "MAX_FILE_BYTES", 1)
                log.record("the first of a new file")
        return read(files, since)

    monkeypatch.setattr(audit, "read_lines", read_late)
    lines = read_log(file, after)
    log.close()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3, 4][after:]


def test_a_line_without_an_end_hides_nothing_that_follows(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 1000)
    written(file, 10)
    with audit_files(file)[0].open("ab") as older:
        older.write(b"{")
    with pytest.raises(DamagedError, match="has no end"):
        lines_of(file)
    audit_files(file)[0].unlink()
    with file.open("ab") as newest:
        newest.write(b"x" * audit.MAX_LINE_BYTES)
    with pytest.raises(DamagedError, match="has no end"):
        lines_of(file)


def test_a_new_file_that_cannot_be_opened_is_opened_later(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 200)
    log = AuditLog(file, "manager")
    log.record("one")
    with monkeypatch.context() as patched:

        def refuse(_file: Path) -> int:
            raise OSError(24, "too many open files")

        patched.setattr(audit, "_open", refuse)
        log.record("two")
        log.record("three")
    log.record("four")
    log.close()
    entries = [json.loads(line) for line in lines_of(file)]
    assert [entry["action"] for entry in entries] == ["one", "four"]
    assert entries[1]["about"] == {"lost_entries_before": 2}
    assert verify(iter(lines_of(file))) == log.head


def test_a_log_that_somebody_damages_keeps_nobody_from_working(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 200)
    log = AuditLog(file, "manager")
    log.record("one")
    file.write_bytes(b"x" * 200)
    with capture_logs() as logs:
        log.record("two")
    log.close()
    [line] = [line for line in logs if line["event"] == "the audit log cannot be written"]
    assert "is no entry of an audit log" in line["reason"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_the_disk_does_not_take_is_counted_and_told(file: Path) -> None:
    log = AuditLog(file, "manager")
    log.record("one")
    good = os.dup(log._descriptor)  # noqa: SLF001
    with open("/dev/full", "r+b", buffering=0) as full, capture_logs() as logs:  # noqa: PTH123
        os.dup2(full.fileno(), log._descriptor)  # noqa: SLF001
        log.record("two")
        log.record("three")
    os.dup2(good, log._descriptor)  # noqa: SLF001
    os.close(good)
    log.record("four")
    log.close()
    entries = [json.loads(line) for line in lines_of(file)]
    assert [entry["action"] for entry in entries] == ["one", "four"]
    assert entries[1]["about"] == {"lost_entries_before": 2}
    assert len([line for line in logs if line["event"] == "the audit log cannot be written"]) == 1
    assert verify(iter(lines_of(file))).seq == 2


def test_one_process_writes_a_log(file: Path, tmp_path: Path) -> None:
    log = AuditLog(file, "manager")
    with pytest.raises(StartError, match="another process writes"):
        AuditLog(file, "manager")
    log.close()
    log.close()
    log.record("too late")
    again = AuditLog(file, "manager")
    assert again.head.seq == 0
    again.close()
    (tmp_path / "plain").write_text("")
    with pytest.raises(StartError, match="PROPELLER_AUDIT_LOG"):
        AuditLog(tmp_path / "plain" / "audit.jsonl", "manager")
    file.write_bytes(b"something else\n")
    with pytest.raises(StartError, match="is no entry of an audit log; move the file away"):
        AuditLog(file, "manager")


def test_threads_share_a_log(file: Path) -> None:
    log = AuditLog(file, "manager")

    def record() -> None:
        for _ in range(50):
            log.record("x")

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert verify(iter(lines_of(file))).seq == 200


def test_long_texts_are_cut(file: Path) -> None:
    log = AuditLog(file, "manager")
    log.record("x" * 100_000, about={"y": "é" * 100_000})
    log.close()
    [line] = lines_of(file)
    assert len(line) < 4000


def test_notes_are_of_the_task_that_collects() -> None:
    note(lost="nobody collects")
    with collecting() as facts:
        note(task="t-1", none=None)
        with collecting() as inner:
            note(task="t-2")
    assert (facts, inner) == ({"task": "t-1"}, {"task": "t-2"})


def test_an_entry_is_never_longer_than_what_is_read(file: Path) -> None:
    log = AuditLog(file, "manager")
    log.record("\x00" * 400, about={f"fact_{number}": "\U0001f600" * 400 for number in range(8)}, status=200)
    log.record("after it")
    log.close()
    first, second = lines_of(file)
    assert len(first) < audit.MAX_LINE_BYTES
    assert json.loads(first)["about"]["left_out"].startswith("8 facts of ")
    assert json.loads(second)["action"] == "after it"
    reopened = AuditLog(file, "manager")
    assert reopened.head.seq == 2
    reopened.close()
