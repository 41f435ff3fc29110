"""The file of a native program, and the metadata of a script."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.native_program import (
    HEAD,
    NativeProgram,
    NativeProgramError,
    ScriptMetadata,
    is_native,
)

names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(st.dictionaries(names, texts, min_size=1), st.data())
def test_what_is_written_is_read(modules: dict[str, str], data: st.DataObject) -> None:
    script = data.draw(st.sampled_from(sorted(modules)))
    made = NativeProgram(script, modules, ("train",), ">=3.11", ("numpy>=1",))
    content = made.encode()
    assert is_native(content)
    assert (
        content
        == NativeProgram(
            script, dict(reversed(modules.items())), ("train",), ">=3.11", ("numpy>=1",)
        ).encode()
    )
    assert NativeProgram.decode(content) == made


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda rest: HEAD + rest))
def test_other_bytes_are_refused_with_a_reason(content: bytes) -> None:
    with pytest.raises(NativeProgramError):
        NativeProgram.decode(content)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"script": "other"}, "script: must be the name of a module"),
        ({"script": 1}, "script: must be the name of a module"),
        ({"modules": []}, "modules: must be an object"),
        ({"modules": {"train": 1}}, "modules: must be an object"),
        ({"modules": {"a b": "", "train": ""}}, "modules: a name is no Python name"),
        ({"dependencies": "numpy"}, "dependencies: must be a list"),
        ({"dependencies": ["x"] * 65}, "dependencies: at most 64"),
        ({"dependencies": ["x" * 300]}, "has more than 256 characters"),
        ({"requires_python": 3}, "requires-python: must be a text"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], told: str) -> None:
    fields = json.loads(NativeProgram("train", {"train": ""}).encode())
    with pytest.raises(NativeProgramError, match=told):
        NativeProgram.decode(json.dumps({**fields, **change}).encode())


def test_functions_that_are_none_are_left_out() -> None:
    fields = json.loads(NativeProgram("train", {"train": ""}).encode())
    read = NativeProgram.decode(json.dumps({**fields, "functions": ["train", "mine"]}).encode())
    assert read.functions == ("train",)


BLOCK = """#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy>=1.26",
# ]
#
# [tool.propeller]
# native = true
# ///
import numpy
"""


def test_metadata_is_read_where_it_is() -> None:
    assert ScriptMetadata.of(BLOCK) == ScriptMetadata(True, ">=3.11", ("numpy>=1.26",))
    assert ScriptMetadata.of("import numpy\n") == ScriptMetadata()
    assert ScriptMetadata.of(BLOCK.replace("native = true", "")).native is False
    other = BLOCK.replace("/// script", "/// other")
    assert ScriptMetadata.of(other) == ScriptMetadata()
    with pytest.raises(NativeProgramError, match="more than one block"):
        ScriptMetadata.of(BLOCK + BLOCK)


@given(texts)
def test_any_text_has_metadata_or_a_reason(text: str) -> None:
    for one in (text, f"# /// script\n{text}\n# ///\n", f"# /// script\n# {text}\n# ///\n"):
        with contextlib.suppress(NativeProgramError):
            assert ScriptMetadata.of(one).native is False
