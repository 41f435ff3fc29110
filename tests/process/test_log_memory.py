"""The newest lines of a log in memory: how many, of which level, what follows, and what an earlier process left."""

import json
import logging
from pathlib import Path

from propeller.process.log_memory import MAX_BYTES, MAX_LINE, MAX_LINES, LogMemory, read_end


def line(number: int, level: str = "INFO") -> str:
    return json.dumps({"time": f"2026-01-01T00:00:{number:02d}Z", "level": level, "msg": f"m{number}"})


def filled(*lines: str) -> LogMemory:
    memory = LogMemory()
    for one in lines:
        memory.write(f"{one}\n")
    return memory


def test_the_newest_of_a_level_and_what_follows() -> None:
    memory = filled(line(1), line(2, "WARNING"), line(3, "DEBUG"), "Traceback …", line(4, "ERROR"))
    assert memory.read(10).lines == [
        line(1),
        line(2, "WARNING"),
        line(3, "DEBUG"),
        "Traceback …",
        line(4, "ERROR"),
    ]
    assert memory.read(2).lines == ["Traceback …", line(4, "ERROR")]
    some = memory.read(10, logging.WARNING)
    assert some.lines == [line(2, "WARNING"), "Traceback …", line(4, "ERROR")]
    assert memory.read(10, after=some.next).lines == []
    for number in (5, 6, 7):
        memory.write(line(number) + "\n")
    following = memory.read(2, after=some.next)
    assert following.lines == [line(5), line(6)]
    assert memory.read(2, after=following.next).lines == [line(7)]


def test_what_followed_and_was_forgotten_is_left_out() -> None:
    memory = filled(line(1))
    begin = memory.read(1).next
    for _ in range(MAX_LINES + 5):
        memory.write(line(2) + "\n")
    assert len(memory.read(MAX_LINES, after=begin).lines) == MAX_LINES
    for _ in range(MAX_BYTES // MAX_LINE):
        memory.write("x" * MAX_LINE + "\n")
    memory.write(line(3) + "\n")
    left = memory.read(MAX_LINES).lines
    assert left[-1] == line(3)
    assert set(left[:-1]) == {"x" * MAX_LINE}
    assert sum(map(len, left)) <= MAX_BYTES


def test_a_long_line_is_cut_and_pushes_out_no_others() -> None:
    memory = filled(line(1), "x" * (50 * MAX_BYTES), "[" * MAX_LINE, line(2))
    first, long, deep, last = memory.read(10).lines
    assert (first, last) == (line(1), line(2))
    assert long == f"{'x' * MAX_LINE}… ({50 * MAX_BYTES} characters)"
    assert memory.read(10, logging.ERROR).lines == [long, deep]


def test_another_process_begins_with_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "manager.log"
    assert read_end(file) == []
    file.with_name("manager.log.1").write_text("".join(f"{line(number)}\n" for number in (1, 2)))
    file.write_bytes(b"".join(f"{line(number)}\n".encode() for number in (3, 4)) + b"torn \xff")
    first = LogMemory(read_end(file))
    assert first.read(10).lines == [*map(line, (1, 2, 3, 4)), "torn \ufffd"]
    second = LogMemory(read_end(file))
    assert (
        second.read(10, after=first.read(10).next).lines == first.read(10).lines
    )  # all: it knows nothing of the first
    file.write_text("\n".join(line(1, "X" * 1000) for _ in range(1000)))
    assert set(read_end(file)) == {line(1, "X" * 1000)}  # none that is cut
    assert 200 < len(read_end(file)) < 300
