"""The reason of a failed program is its message, whatever stands behind it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.wasm.last_words import LastWords, tells_of_memory

RUST = """trained on 64 samples
thread 'main' panicked at src/main.rs:1:58:
called `Result::unwrap()` on an `Err` value: "bad model shape"
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace"""
OLD_RUST = """thread 'main' panicked at 'bad model shape', src/main.rs:1:58
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace"""
GO = """panic: bad model shape

goroutine 1 [running]:
main.main()
\t/tmp/main.go:2 +0x2"""
GO_LOOP = """fatal error: all goroutines are asleep - deadlock!

goroutine 1 [chan receive]:
main.main()"""
PYTHON = """Traceback (most recent call last):
  File "train.py", line 6, in fit
    raise KeyError("w") from error
    ^^^^^^^^^^^^^
train.py:6: KeyError: 'w'
train.py:9: RuntimeWarning: coroutine 'g' was never awaited
  import traceback"""
CHAINED = """Traceback (most recent call last):
  File "train.py", line 4, in fit
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 6, in fit
TypeError: second
"""
C = """reading the model
bad model shape

"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            RUST,
            """panicked at src/main.rs:1:58: called `Result::unwrap()` on an `Err` value: "bad model shape\"""",
        ),
        (OLD_RUST, "panicked at 'bad model shape', src/main.rs:1:58"),
        (GO, "panic: bad model shape"),
        (GO_LOOP, "fatal error: all goroutines are asleep - deadlock!"),
        (PYTHON, "train.py:6: KeyError: 'w'"),
        (CHAINED, "TypeError: second"),
        (C, "bad model shape"),
        ("panic: is a word of this program\nand this is why", "and this is why"),
        ("", ""),
    ],
)
def test_the_message_is_the_reason(text: str, reason: str) -> None:
    words = LastWords(1000)
    for line in text.splitlines():
        words.add(line)
    assert words.reason == reason


@pytest.mark.parametrize(
    ("reason", "tells"),
    [
        ("train.py:6: MemoryError", True),
        ("train.py:6: MemoryError:", True),
        ("MemoryError: Unable to allocate 1.00 GiB", True),
        ("fatal error: runtime: out of memory", True),
        ("memory allocation of 1073741824 bytes failed", True),
        ("libc++abi: terminating due to uncaught exception of type std::bad_alloc: std::bad_alloc", True),
        ("bad_alloc was thrown in -fno-exceptions mode", True),
        ("malloc: Out of memory", True),
        ("error: OutOfMemory", True),
        ("Unhandled exception. System.OutOfMemoryException", True),
        ("train.py:6: KeyError: 'MemoryErrors'", False),
        ("the model's memory has 3 cells", False),
        ("", False),
    ],
)
def test_programs_say_that_they_got_no_memory(reason: str, *, tells: bool) -> None:
    assert tells_of_memory(reason) is tells


@given(st.lists(st.text(), max_size=300))
def test_whatever_is_said_the_reason_is_bounded_and_said(lines: list[str]) -> None:
    words = LastWords(20)
    for line in lines:
        assert words.add(line) == line[:20]
    assert len(words.reason) <= 20
