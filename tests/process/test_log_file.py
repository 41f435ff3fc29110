"""Log files that are set aside when they are full: bounded, complete, also for what is no log line and for two processes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from propeller.cli.log_tail import FileTail
from propeller.process.log_file import MAX_OLD_FILES, LogFile, newest_first


def texts(file: Path) -> list[str]:
    return [place.read_text() for place in newest_first(file) if place.exists()]


def test_a_full_file_is_set_aside_and_only_so_many_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "svc.log"
    log = LogFile(file, max_bytes=8)
    for number in range(4 * (MAX_OLD_FILES + 3)):
        assert log.write(f"{number:03d}\n") == 4
    assert texts(file) == [f"{n:03d}\n{n + 1:03d}\n" for n in range(26, 26 - 2 * (MAX_OLD_FILES + 1), -2)]
    assert set(file.parent.iterdir()) == set(newest_first(file))


def test_what_was_there_counts_and_a_line_longer_than_a_file_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    file.write_text("before\n")
    file.chmod(0o640)
    log = LogFile(file, max_bytes=10)
    before = os.umask(0o077)  # a service's
    try:
        log.write("é" * 50 + "\n")
        log.write("after\n")
    finally:
        os.umask(before)
    assert texts(file) == ["after\n", "é" * 50 + "\n", "before\n"]
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_file_that_was_removed_or_moved_is_made_anew_when_it_is_full(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    log = LogFile(file, max_bytes=10)
    log.write("12345678\n")
    file.unlink()
    log.write("anew\n")
    assert texts(file) == ["anew\n"]


def test_what_cannot_be_set_aside_is_written_on(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    log = LogFile(file, max_bytes=10)
    log.write("12345678\n")
    (tmp_path / "svc.log.3").touch()
    (tmp_path / "svc.log.4").mkdir()  # no file can take a folder's place
    log.write("more\n")
    assert file.read_text() == "12345678\nmore\n"


def test_a_process_s_own_output_goes_to_the_newest_file(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    code = (
        "import os, sys; from pathlib import Path; from propeller.process import logs\n"
        "file = Path(sys.argv[1]); out = file.open('ab'); os.dup2(out.fileno(), 2)\n"
        "logs.configure('svc', file=file, max_bytes=200); log = logs.get_logger('x')\n"
        "log.info('a' * 150); log.info('b' * 150); print('error: plain', file=sys.stderr)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    newest, before = texts(file)
    assert "a" * 150 in before
    assert "b" * 150 in newest
    assert newest.endswith("error: plain\n")


def test_a_child_goes_on_with_the_file_that_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    log = LogFile(file, max_bytes=400)
    code = "import sys\nfor number in range(150): print(f'child{number:03d}', file=sys.stderr, flush=True)"
    with file.open("ab") as output:
        child = subprocess.Popen([sys.executable, "-c", code], stderr=output)
    for number in range(150):
        log.write(f"own{number:03d}\n")
        if number == 100:
            assert child.wait(30) == 0
    found = "".join(texts(file)).splitlines()
    assert sorted(found) == [f"{name}{number:03d}" for name in ("child", "own") for number in range(150)]


def test_threads_lose_nothing_of_each_other(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "svc.log", max_bytes=1000)
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        for number in range(100):
            log.write(f"{name}{number:07d}\n")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = "".join(texts(tmp_path / "svc.log")).splitlines()
    assert len(found) == len(set(found)) == 400


def test_a_reader_gets_each_line_once_while_files_are_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    log = LogFile(file, max_bytes=20)
    log.write("0\n")
    tail, got = FileTail(file), []
    for number in range(1, 60):
        log.write(f"{number}\n")
        if number % 7 == 0:
            got += list(tail.lines())
    assert [int(line) for line in [*got, *tail.lines()]] == list(range(60))
    with file.open("a") as stream:
        stream.write("hal")
        stream.flush()
        assert list(tail.lines()) == []
        stream.write("f\n")
    assert list(tail.lines()) == ["half"]
    tail.close()


def test_a_reader_that_is_left_behind_goes_on_with_what_is_left(tmp_path: Path) -> None:
    file = tmp_path / "svc.log"
    log = LogFile(file, max_bytes=2)
    log.write("0\n")
    tail = FileTail(file)
    assert list(tail.lines()) == ["0"]
    for number in range(1, 20):
        log.write(f"{number}\n")
    assert [int(line) for line in tail.lines()] == list(range(20 - MAX_OLD_FILES - 1, 20))
    tail.close()
    with pytest.raises(FileNotFoundError):
        FileTail(tmp_path / "other.log")


def test_a_line_that_a_full_disk_takes_in_part_costs_no_other_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = LogFile(tmp_path / "svc.log"), os.write
    log.write("one\n")
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:2]))
        log.write("two\n")

        def refuse(_descriptor: int, _data: bytes) -> int:
            raise OSError(28, "no space left")

        full.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="no space"):
            log.write("three\n")
    log.write("four\n")
    log.write("five\n")
    assert texts(tmp_path / "svc.log") == ["one\ntw\nfour\nfive\n"]
