"""Functions of components, called with inputs of their types."""

import pytest
import wasmtime

from propeller.wasm.program_run import ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from support.guests import add


def component(name: str, parameters: str, result: str, core: str) -> bytes:
    """A component with one function; ``core`` is the core function ``f``, beside memory ``m`` and ``realloc``."""
    return bytes(
        wasmtime.wat2wasm(f"""(component
          (core module $m
            (memory (export "m") 1)
            (global $end (mut i32) (i32.const 1024))
            (func (export "realloc") (param i32 i32 i32 i32) (result i32)
              (global.set $end (i32.and (i32.add (global.get $end) (i32.const 15)) (i32.const -16)))
              (global.get $end)
              (global.set $end (i32.add (global.get $end) (local.get 3))))
            {core})
          (core instance $i (instantiate $m))
          (func $f {parameters} {result}
            (canon lift (core func $i "f") (memory (core memory $i "m"))
              (realloc (core func $i "realloc"))))
          (export "{name}" (func $f)))""")
    )


def same(kind: str, core: str) -> bytes:
    """A function that gives back its one parameter."""
    code = f'(func (export "f") (param {core}) (result {core}) (local.get 0))'
    return component("same", f'(param "x" {kind})', f"(result {kind})", code)


# A list or a string is two numbers as a parameter, and a place with two numbers as a result.
PAIR = """(func (export "f") (param i32 i32) (result i32)
  (i32.store (i32.const 512) (local.get 0)) (i32.store (i32.const 516) (local.get 1)) (i32.const 512))"""


def same_pair(kind: str) -> bytes:
    return component("same", f'(param "x" {kind})', f"(result {kind})", PAIR)


async def call(sandbox: Sandbox, wasm: bytes, *inputs: str, name: str = "same") -> RunOutcome:
    return await sandbox.run(ProgramRun("a", await add(sandbox, wasm), export=name, inputs=inputs))


async def test_numbers_and_flags(sandbox: Sandbox) -> None:
    for kind, core, texts in (
        ("s8", "i32", ("-128", "127")),
        ("u16", "i32", ("0", "65535")),
        ("s32", "i32", ("-2147483648",)),
        ("u64", "i64", ("18446744073709551615",)),
        ("s64", "i64", ("-9223372036854775808",)),
        ("f32", "f32", ("0.1", "-2.5")),
        ("f64", "f64", ("0.1", "1e+300")),
        ("bool", "i32", ("true", "false")),
        ("char", "i32", ("ø", "🦊")),
    ):
        program = same(kind, core)
        for text in texts:
            outcome = await call(sandbox, program, text)
            assert (outcome.error, outcome.value) == (None, text), kind


async def test_texts_and_lists(sandbox: Sandbox) -> None:
    for kind, texts in (
        ("string", ("", "007", "héllo 🦊", "[1]")),
        ("(list u8)", ("[]", "[0,255]")),
        ("(list f64)", ("[1.5,-2.0]",)),
        ("(list string)", ('["a","ü"]',)),
        ("(list (list s32))", ("[[1,2],[],[-3]]",)),
    ):
        program = same_pair(kind)
        for text in texts:
            outcome = await call(sandbox, program, text)
            assert (outcome.error, outcome.value) == (None, text), kind


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("u8", "256", "inputs[0] (x: u8): 256 is not a value of type u8"),
        ("u32", "-1", "inputs[0] (x: u32): -1 is not a value of type u32"),
        ("s32", "1.5", "inputs[0] (x: s32): 1.5 is not a value of type s32"),
        ("s32", "true", "inputs[0] (x: s32): True is not a value of type s32"),
        ("s32", "five", "inputs[0] (x: s32): 'five' cannot be read"),
        ("s32", "", "inputs[0] (x: s32): '' cannot be read"),
        ("bool", "1", "inputs[0] (x: bool): 1 is not a value of type bool"),
        ("char", "ab", "inputs[0] (x: char): 'ab' is not a value of type char"),
        ("f32", "1e39", "inputs[0] (x: f32): 1e+39 is not a value of type f32"),
        ("f64", "9" * 400, f"inputs[0] (x: f64): {'9' * 80} is not a value of type f64"),
        ("f64", '"1"', "inputs[0] (x: f64): '1' is not a value of type f64"),
    ],
)
async def test_an_input_of_another_type_is_named(sandbox: Sandbox, kind: str, text: str, says: str) -> None:
    core = {"f32": "f32", "f64": "f64"}.get(kind, "i32")
    assert (await call(sandbox, same(kind, core), text)).error == says


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("(list u8)", "[1,300]", "inputs[0] (x: list<u8>)[1]: 300 is not a value of type u8"),
        ("(list u8)", "5", "inputs[0] (x: list<u8>): 5 is not a list"),
        (
            "(list string)",
            r'["\ud800"]',
            r"inputs[0] (x: list<string>)[0]: '\ud800' is not a value of type string",
        ),
        ("(list s32)", "[" * 100_000, "inputs[0] (x: list<s32>): '[[[["),
    ],
)
async def test_an_item_of_another_type_is_named(sandbox: Sandbox, kind: str, text: str, says: str) -> None:
    error = (await call(sandbox, same_pair(kind), text)).error
    assert error is not None
    assert error.startswith(says)


async def test_what_is_missing_is_named(sandbox: Sandbox) -> None:
    program = same("s32", "i32")
    assert (await call(sandbox, program)).error == "inputs: the function takes 1 (x: s32), 0 given"
    assert (await call(sandbox, program, "1", "2")).error == "inputs: the function takes 1 (x: s32), 2 given"
    assert (await call(sandbox, program, "1", name="other")).error == (
        "the component exports neither a function named other nor wasi:cli/run@0.2"
    )
    command = wasmtime.wat2wasm("""(component
      (core module $m (func (export "run") (result i32) (i32.const 0)))
      (core instance $i (instantiate $m))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $exports (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $exports)))""")
    assert (await call(sandbox, bytes(command), name="any")).error is None
    assert (await call(sandbox, bytes(command), "1", name="any")).error == (
        "inputs: the component exports no function named any to take them, and a command takes none"
    )


async def test_results_that_say_how_it_went(sandbox: Sandbox) -> None:
    """A ``result`` is its value, or the task's error."""
    code = """(func (export "f") (param i32) (result i32)
      (i32.store8 (i32.const 512) (local.get 0)) (i32.store (i32.const 516) (i32.const 7)) (i32.const 512))"""
    program = component("same", '(param "fail" bool)', "(result (result s32 (error u32)))", code)
    assert (await call(sandbox, program, "false")).value == "7"
    assert (await call(sandbox, program, "true")).error == "the function gave an error: 7"
    bare = component(
        "same",
        '(param "fail" bool)',
        "(result (result))",
        '(func (export "f") (param i32) (result i32) (local.get 0))',
    )
    assert (await call(sandbox, bare, "false")).value == ""
    assert (await call(sandbox, bare, "true")).error == "the function gave an error"


async def test_a_result_too_long_to_report_fails_by_its_size(sandbox: Sandbox) -> None:
    outcome = await call(sandbox, same_pair("string"), "x" * 50_000)
    assert outcome.error == (
        "the function's result has 50002 bytes as text, at most 49152 are taken: have the program print it"
    )


async def test_a_function_without_a_result_or_that_traps(sandbox: Sandbox) -> None:
    nothing = component("same", "", "", '(func (export "f"))')
    assert (await call(sandbox, nothing)).value is None
    trap = component("same", "", "", '(func (export "f") unreachable)')
    assert "unreachable" in ((await call(sandbox, trap)).error or "")
