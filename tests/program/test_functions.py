"""What a program's file says of its functions."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.functions import FUNCTIONS, functions_of, is_missing_function, missing_function, with_functions
from propeller.program import aggregate, evaluate, registry, train
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


@pytest.fixture
def fresh() -> Iterator[None]:
    registry.reset()
    yield
    registry.reset()


def two(model: Any, data: Any) -> None:
    del model, data


def named(model: Any, data: Any, hyperparams: Any, ctx: Any, *, lr: float) -> None:
    del model, data, hyperparams, ctx, lr


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("mark", "function", "text"),
    [
        (train, two, "two takes (model, data), and is given (model, data, hyperparams, ctx)"),
        (evaluate, lambda a, b, c, d, e: None, "takes (a, b, c, d, e), and is given (model, data, hyperp"),
        (aggregate, two, "two takes (model, data), and is given (base, updates, state, params, ctx)"),
        (train, named, "named takes (model, data, hyperparams, ctx, *, lr), and is given ("),
    ],
)
def test_a_function_that_takes_something_else_is_refused_when_it_is_marked(
    mark: Callable[..., Any], function: Callable[..., Any], text: str
) -> None:
    with pytest.raises(TypeError) as refused:
        mark(function)
    assert text in str(refused.value)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "function",
    [
        lambda *given: None,
        lambda model, *rest: None,
        lambda model, data, hyperparams, ctx, more=1: None,
        lambda model=1, data=2, hyperparams=3, ctx=4, *, lr=0.1, **other: None,
        type("Fit", (), {"__call__": lambda *_: None})(),
    ],
)
def test_a_function_that_can_be_called_with_what_it_is_given_is_taken(function: Callable[..., Any]) -> None:
    assert train(function) is function
