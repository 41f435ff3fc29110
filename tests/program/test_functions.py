"""What a program's file says of its functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.functions import FUNCTIONS, functions_of, is_missing_function, missing_function, with_functions
from propeller.wasm.build.sources import functions_in

HEAD = b"\0asm\x0d\0\x01\0"


@given(st.binary(max_size=300), st.lists(st.sampled_from(FUNCTIONS), unique=True))
def test_a_file_says_which_functions_it_has(content: bytes, functions: list[str]) -> None:
    size = bytes([len(content) & 0x7F | 0x80, len(content) >> 7])
    program = HEAD + b"\x01" + size + content
    assert functions_of(program) is None
    assert functions_of(with_functions(program, functions)) == functions


@given(st.binary(max_size=100))
def test_what_is_no_wasm_file_says_nothing(content: bytes) -> None:
    assert functions_of(HEAD + content) is None


def test_names_that_are_not_known_are_left_out() -> None:
    assert functions_of(with_functions(HEAD, ["train", "predict"])) == ["train"]


@pytest.mark.parametrize(
    ("source", "functions"),
    [
        ("from propeller.program import train\n@train\ndef f(): ...", ["train"]),
        (
            "from propeller.program import evaluate as check, train\n@train\ndef f(): ...",
            ["train", "evaluate"],
        ),
        ("import propeller.program as p\n@p.aggregate\ndef f(): ...", ["aggregate"]),
        ("from propeller.program import *\n@train\ndef f(): ...", [*FUNCTIONS]),
        ("evaluation = 1", []),
    ],
)
def test_a_decorator_that_is_not_used_marks_nothing(source: str, functions: list[str]) -> None:
    assert functions_in({"train.py": source}) == functions


def test_a_failure_for_a_missing_function_is_recognised() -> None:
    reason = f"p-1: LookupError: {missing_function('evaluate')}"
    assert is_missing_function(reason, "evaluate")
    assert not is_missing_function(reason, "train")
    assert reason.endswith(
        "mark one with @evaluate of propeller.program, or leave evaluate out of the experiment"
    )
