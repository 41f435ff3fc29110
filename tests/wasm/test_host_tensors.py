"""The host's tensors as a component meets them, and components that mean harm: each gets an error, or ends by a named limit."""

import contextlib
import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings

from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.tensors.machine import QuotaError
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.operations import OPERATIONS
from propeller.tensors.shapes import TensorError, size_bytes
from propeller.wasm import template_client
from propeller.wasm.program_run import MIB, Limits, ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from support.guests import add, command
from support.tensor_guests import FIRST, sender

GOOD = [["full", 1, [], ["float32", [2], 1.5]], ["add", 2, [1, [1]], None], ["read", None, [2], None]]
GOOD_ANSWER = ["AAAgQAAAIEA="]
"""Two float32 of 2.5."""


def full(handle: int, *shape: int, dtype: str = "float32") -> list[Any]:
    return ["full", handle, [], [dtype, list(shape), 1]]


async def run(
    sandbox: Sandbox, wasm: bytes, *, files: Any = None, seconds: float = 20, **limits: Any
) -> RunOutcome:
    """Run a component, then a good one, which must work; gives the first one's outcome."""
    asked = Limits(**{"wall_time_s": seconds, "memory_bytes": 192 * MIB, **limits})
    outcome = await sandbox.run(ProgramRun("a", await add(sandbox, wasm), files=files or {}, limits=asked))
    after = await sandbox.run(ProgramRun("good", await add(sandbox, sender(GOOD))))
    assert after.error is None, after
    assert answers(after) == [GOOD_ANSWER]
    return outcome


def answers(outcome: RunOutcome) -> list[Any]:
    """What the host answered: the parsed answer, or the text of an error."""
    found: list[Any] = []
    for line in outcome.stdout.decode().splitlines():
        kind, _, text = line.partition(" ")
        found.append(json.loads(text) if kind == "ok" else text)
    return found


def named(outcome: RunOutcome, limit: str) -> None:
    assert outcome.limit == limit, outcome
    assert outcome.error is not None
    assert outcome.error.startswith(f"{limit}: over the limit of "), outcome


async def test_model_data_and_update(sandbox: Sandbox) -> None:
    """From the task's files to the update's, without a number in the guest."""
    model = {"w": np.arange(6, dtype="float32").reshape(2, 3), "b": np.array(0.5)}
    data = {"data": [{"x": [1, 2, 3], "y": True}, {"x": [4, 5, 6], "y": False}], "size": 2}
    wasm = sender(
        [["describe", None, [], "model"], ["describe", None, [], "data"]],
        [["open", 1, [], ["model", "w"]], ["open", 2, [], ["data", "x"]], ["open", 3, [], ["model", "b"]]],
        [
            ["mul", 4, [1, 2], None],
            ["free", None, [1, 2], None],
            ["read", None, [4], None],
        ],
        [["save", None, [4, 3], ["w", "../b"]]],
    )
    files = {"model.safetensors": to_safetensors(model), "dataset.json": json.dumps(data).encode()}
    outcome = await run(sandbox, wasm, files=files)
    assert outcome.error is None
    described, opened, read, saved = answers(outcome)
    assert described == [
        {"w": ["float32", [2, 3]], "b": ["float64", []]},
        {"x": ["int64", [2, 3]], "y": ["bool", [2]]},
    ]
    assert (opened, saved) == ([], [])
    product = model["w"] * np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(np.frombuffer(b64decode(read[0]), "<f4").reshape(2, 3), product)
    assert list(outcome.out_files) == ["update.safetensors"]
    update, _ = from_safetensors(outcome.out_files["update.safetensors"])
    assert list(update) == ["w", "../b"]
    np.testing.assert_array_equal(update["w"], product)
    assert update["../b"].item() == 0.5
    assert outcome.metrics["tensor_steps"] == 9


ROUTINE = {"inputs": [["float32", [2]]], "donated": [], "steps": [["add", 1, [0, 0], None]], "outputs": [1]}

REFUSED: list[tuple[Any, str]] = [
    ("", "the tape: "),
    ("no JSON", "the tape: JSONDecodeError"),
    ("[" * 100_000, "the tape: RecursionError"),
    ("5", "the tape: TypeError"),
    ('{"a": 1}', "ValueError"),
    ('["abcd"]', "there is no array with the handle 'c'"),
    ([[]], "ValueError"),
    ([["add", 9, [1, 1]]], "ValueError"),
    ([["shutdown", 9, [], None]], "there is no operation 'shutdown'"),
    ([["__class__", 9, [], None]], "there is no operation '__class__'"),
    ([["read", None, [77], None]], "there is no array with the handle 77"),
    ([["read", None, ["1"], None]], "there is no array with the handle '1'"),
    ([["read", None, [1.0], None]], "there is no array with the handle 1.0"),
    ([["read", None, [True], None]], "there is no array with the handle True"),
    ([["read", None, [None], None]], "there is no array with the handle None"),
    ([["read", None, [[1]], None]], "there is no array with the handle [1]"),
    ([["read", None, [], None]], "read: "),
    ([["add", 1, [1, 1], None]], "1 is not a new handle"),
    ([["add", "x", [1, 1], None]], "'x' is not a new handle"),
    ([["add", None, [1, 1], None]], "None is not a new handle"),
    ([["add", 9, [1, -1], None]], "there is no array with the handle -1"),
    ([["add", 9, [1, {"a": 1}], None]], "there is no array with the handle {'a': 1}"),
    ([["add", 9, [1, ["1"]], None]], "'1' is not a number"),
    ([["add", 9, [1, [1, 2]], None]], "add: ValueError"),
    ([["add", 9, [1, [10**30]], None]], "is not a number"),
    ([["add", 9, 1, None]], "add: TypeError"),
    ([["free", None, ["1"], None]], "free: '1' is no handle"),
    ([full(9, 2**40, 2**40)], "is too large"),
    ([full(9, *[2**62] * 8)], "is too large"),
    ([full(9, *[1] * 33)], "33 dimensions; at most 32"),
    ([full(9, -1)], "[-1] is not a shape"),
    ([full(9, -(2**40), -(2**40))], "is not a shape"),
    ([["full", 9, [], ["float32", "22", 0]]], "'22' is not a shape"),
    ([["full", 9, [], ["float32", [2.0], 0]]], "[2.0] is not a shape"),
    ([["full", 9, [], ["object", [2], 0]]], "there is no dtype 'object'"),
    ([["full", 9, [], ["float32", [2], {}]]], "full: {} is no float32"),
    ([["full", 9, [], None]], "full: TypeError"),
    ([["\ud800", 9, 5, None]], "?: TypeError"),
    ([["reshape", 9, [1], [2**62, 4]]], "has not as many elements"),
    ([["broadcast_to", 9, [1], [2**30, 2**30, 2]]], "is too large"),
    ([["one_hot", 9, [2], 2**62]], "is too large"),
    ([["arange", 9, [], 1e3]], "[1000.0] is not a shape"),
    ([["cut", 9, [1], [[0, 2**62, 1]]]], "outside axis 0 of size 2"),
    ([["cut", 9, [1], [[[0], 10**9, [0]]]]], "is not a slice"),
    ([["cut", 9, [1], [-1]]], "index -1 is outside axis 0"),
    ([["cut", 9, [1], [True]]], "is not a slice"),
    ([["take", 9, [1, 2], None]], "take: IndexError: index 5 is outside 2 rows, 0 to 1"),
    ([["take", 9, [1, 1], None]], "indices are integers"),
    ([["one_hot", 9, [2], 1]], "one_hot: IndexError: a label is outside 1 classes"),
    ([["sum", 9, [1], [[0, 0], False]]], "is not [axes, each once"),
    ([["sum", 9, [1], None]], "sum: TypeError"),
    ([["transpose", 9, [1], [float("nan")]]], "is not an order"),
    ([["softmax", 9, [1], float("nan")]], "an axis is an integer"),
    ([["random", 9, [], ["cauchy", [2], [1]]]], "random: there is no kind 'cauchy'"),
    ([["random", 9, [], ["normal", [2], [-1]]]], "is not a seed"),
    ([["random", 9, [], ["normal", [2], float("nan")]]], "nan is not a seed"),
    ([["create", 9, [], ["float32", [2], "!"]]], "create: "),
    ([["create", 9, [], ["float32", [2], "AAAA"]]], "create: 3 bytes are not 2 elements of float32"),
    ([["create", 9, [], ["float32", [2], None]]], "create: TypeError"),
    ([["open", 9, [], ["model", "w"]]], "the model has no tensor 'w'"),
    ([["open", 9, [], ["../../etc/passwd", "w"]]], "there is no source '../../etc/passwd'"),
    ([["open", 9, [], [["model"], "w"]]], "open: TypeError"),
    ([["describe", None, [], None]], "there is no source None"),
    ([["save", None, [1, 1], ["a", "a"]]], "save: one name for each array"),
    ([["save", None, [1], [7]]], "save: one name for each array"),
    ([["save", None, [77], ["a"]]], "there is no array with the handle 77"),
    ([["define", 5, [], {**ROUTINE, "steps": [["add", 1, [0, 2], None]]}]], "define: there is no slot 2 below 1"),
    ([["define", 5, [], {**ROUTINE, "steps": [["add", 1, [0, 1], None]]}]], "define: there is no slot 1 below 1"),
    ([["define", 5, [], {**ROUTINE, "steps": [["add", 7, [0, 0], None]]}]], "a step's slot is not the next one"),
    ([["define", 5, [], {**ROUTINE, "steps": [["read", 1, [0], None]]}]], "there is no operation 'read'"),
    ([["define", 5, [], {**ROUTINE, "steps": [["call", 1, [0], 5]]}]], "there is no operation 'call'"),
    ([["define", 5, [], {**ROUTINE, "outputs": [2]}]], "define: there is no slot 2 below 2"),
    ([["define", 5, [], {**ROUTINE, "outputs": ["__import__('os')"]}]], "define: there is no slot"),
    ([["define", 5, [], {**ROUTINE, "outputs": [True]}]], "define: there is no slot True"),
    ([["define", 5, [], {**ROUTINE, "donated": [1]}]], "define: there is no slot 1 below 1"),
    ([["define", 5, [], {**ROUTINE, "inputs": [["object", [2]]]}]], "there is no dtype 'object'"),
    ([["define", 5, [], {**ROUTINE, "inputs": [["float32", [-2]]]}]], "[-2] is not a shape"),
    ([["define", 5, [], None]], "define: TypeError"),
    ([["define", 4, [], ROUTINE]], "4 is not a new number for steps"),
    ([["call", [9], [1], 99]], "no steps are kept as 99"),
    ([["call", [9], [1], [4]]], "call: TypeError"),
    ([["call", [9], [2], 4]], "the steps kept as 4 are for other arrays"),
    ([["call", [9, 10], [1], 4]], "the steps kept as 4 are for other arrays"),
    ([["call", [1], [1], 4]], "1 is not a new handle"),
    ([["call", 5, [1], 4]], "call: TypeError"),
]  # fmt: skip


async def test_tapes_that_are_refused(sandbox: Sandbox) -> None:
    """The program is told, and everything that it had is as it was."""
    base = [
        full(1, 2),
        ["create", 2, [], ["int64", [2], b64encode(np.array([1, 5]).tobytes()).decode()]],
        ["define", 4, [], ROUTINE],
    ]
    check = [
        ["call", [8], [1], 4],
        ["add", 7, [8, 1], None],
        ["read", None, [7], None],
        ["free", None, [7, 8, 7, 9], None],
    ]
    tapes: list[Any] = [base]
    for tape, _ in REFUSED:
        tapes += [tape, check]
    outcome = await run(sandbox, sender(*tapes))
    assert outcome.error is None, outcome
    given_back = answers(outcome)
    three = [b64encode(np.full(2, 3, "float32").tobytes()).decode()]
    for (tape, text), answer, good in zip(REFUSED, given_back[1::2], given_back[2::2], strict=True):
        assert isinstance(answer, str), f"{tape!r:.100} → {answer!r:.100}"
        assert text in answer, f"{tape!r:.100} → {answer}"
        assert len(answer) < 600
        assert good == three, f"after {tape!r:.100}"
    assert outcome.out_files == {}


OVER: list[tuple[Any, str]] = [
        ([full(1, 2**40)], "tensor_bytes"),
        ([full(1, 200_000), full(2, 100_000)], "tensor_bytes"),
        ([full(1, 1), ["broadcast_to", 2, [1], [2**39]]], "tensor_bytes"),
        ([full(1, 200_000), ["cast", 2, [1], "float64"]], "tensor_bytes"),
        ([["create", 1, [], ["float32", [2**30], ""]]], "tensor_bytes"),
        ([["arange", 1, [], 2**39]], "tensor_bytes"),
        ([["random", 1, [], ["normal", [2**30], [1]]]], "tensor_bytes"),
        ([["random", 1, [], ["permutation", [2**30], [1]]]], "tensor_bytes"),
        ([full(handle, 0) for handle in range(51)], "tensor_handles"),
        (
            [
                full(1, 300),
                [
                    "define",
                    1,
                    [],
                    {
                        "inputs": [["float32", [300]]],
                        "steps": [["reshape", 1, [0], [300, 1]], ["mul", 2, [0, 1], None], ["mul", 3, [2, 2], None], ["mul", 4, [2, 3], None], ["sum", 5, [4], [None, False]]],
                        "outputs": [5],
                    },
                ],
                ["call", [2], [1], 1],
            ],
            "tensor_bytes",
        ),
]  # fmt: skip


async def test_quotas(sandbox: Sandbox) -> None:
    """Before memory is taken."""
    for tape, limit in OVER:
        outcome = await run(sandbox, sender(tape), tensor_bytes=MIB, tensor_handles=50)
        named(outcome, limit)
        assert outcome.metrics["memory_peak_bytes"] < 150 * MIB


def filled(pattern: str, count: int) -> str:
    """Wat that repeats a pattern of 4 bytes in grown memory, from ``FIRST`` pages on, and sends it."""
    word = int.from_bytes(pattern.encode(), "little")
    begin, end = FIRST << 16, (FIRST << 16) + count
    return f"""
      (if (i32.lt_u (memory.size) (i32.const {(end >> 16) + 1}))
        (then (drop (memory.grow (i32.sub (i32.const {(end >> 16) + 1}) (memory.size))))))
      (i32.store (i32.const 48) (i32.const {begin}))
      (loop $l
        (i32.store (i32.load (i32.const 48)) (i32.const {word}))
        (i32.store (i32.const 48) (i32.add (i32.load (i32.const 48)) (i32.const 4)))
        (br_if $l (i32.lt_u (i32.load (i32.const 48)) (i32.const {end}))))
      (i32.store8 (i32.const {begin}) (i32.const 91))
      (call $send (i32.const {begin}) (i32.const {count}))"""


async def test_a_huge_tape(sandbox: Sandbox) -> None:
    """100 MB: of nothing it is no JSON; of empty lists it takes more memory than there is."""
    outcome = await run(sandbox, sender(code=filled("    ", 100 * 10**6)), memory_bytes=256 * MIB)
    assert outcome.error is None, outcome
    assert "JSONDecodeError" in answers(outcome)[0]
    named(
        await run(
            sandbox, sender(code=filled("[], ", 100 * 10**6)), memory_bytes=256 * MIB, tensor_bytes=MIB
        ),
        "tensor_bytes",
    )


async def test_answer_that_the_program_has_no_room_for(sandbox: Sandbox) -> None:
    outcome = await run(sandbox, sender([full(1, 2 * MIB), ["read", None, [1], None]]), memory_bytes=4 * MIB)
    assert outcome.error is not None


async def test_wall_time(sandbox: Sandbox) -> None:
    """Calls without end, one long call, and one long tape."""
    forever = "(loop $l (call $run (i32.const 1024) (i32.const 2) (i32.const 16)) (br $l))"
    named(await run(sandbox, sender("[]", code=forever), seconds=0.3), "wall_time_s")
    square = [full(1, 3000, 3000, dtype="float64")]
    named(await run(sandbox, sender([*square, ["matmul", 2, [1, 1], None]]), seconds=0.3), "wall_time_s")
    many = [full(1, 300, 300), *([["matmul", 2, [1, 1], None], ["free", None, [2], None]] * 5000)]
    named(await run(sandbox, sender(many), seconds=0.3), "wall_time_s")


async def test_update_over_its_limit(sandbox: Sandbox) -> None:
    wasm = sender([full(1, 10_000), ["save", None, [1], ["w"]]])
    outcome = await run(sandbox, wasm, out_bytes=1000)
    named(outcome, "out_bytes")
    assert outcome.out_files == {}


async def test_unknown_import(sandbox: Sandbox) -> None:
    text = '(component (import "foo:bar/baz@1.0.0" (instance (export "f" (func)))))'
    outcome = await run(sandbox, bytes(wasmtime.wat2wasm(text)))
    assert outcome.error is not None
    assert outcome.error.startswith(
        "the component imports foo:bar/baz@1.0.0, which the sandbox does not have"
    )


async def test_numpy_is_loaded_for_those_who_import_tensors(sandbox: Sandbox) -> None:
    def loaded() -> bool:
        return "numpy" in Path(f"/proc/{sandbox.template_pid}/maps").read_text()

    core = '(core module $m (func (export "run") (result i32) (i32.const 0))) (core instance $i (instantiate $m))'
    plain = f"""(component {core} (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $e (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $e)))"""
    outcome = await sandbox.run(ProgramRun("a", await add(sandbox, bytes(wasmtime.wat2wasm(plain)))))
    assert (outcome.error, "tensor_steps" in outcome.metrics, loaded()) == (None, False, False)
    await run(sandbox, sender(GOOD))
    assert loaded()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from([2**31, 2**63, -(2**63), 10**25]) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip
DTYPES = st.sampled_from(["float32", "float64", "int64", "uint8", "bool"])
SHAPES = st.lists(st.integers(0, 3), max_size=3)
AXIS = st.none() | st.integers(-2, 2)
PARAMS = (
    st.none()
    | st.integers(-2, 4)
    | DTYPES
    | SHAPES
    | st.tuples(st.none() | st.lists(st.integers(-2, 2), max_size=2), st.booleans())
    | st.lists(st.integers(0, 2) | st.tuples(st.integers(-1, 3), st.integers(0, 3), st.integers(-2, 2)), max_size=3)
    | st.tuples(DTYPES, SHAPES, st.sampled_from([0, 1, 2.5, "", "AAAAAAAAAAA="]))
    | st.tuples(st.sampled_from(["normal", "uniform", "permutation"]), SHAPES, st.lists(st.integers(0, 3), max_size=2))
    | JSON
)  # fmt: skip
OPERAND = st.integers(0, 8) | st.tuples(st.sampled_from([0, 1, -2, 2.5, float("nan"), True])) | JSON
NAMES = st.sampled_from([*OPERATIONS, "free", "read", "save", "describe", "open", "create"])
STEP = st.tuples(NAMES, st.integers(0, 40), st.lists(OPERAND, max_size=3), PARAMS)


@st.composite
def routines(draw: Any) -> Any:
    inputs = draw(st.lists(st.tuples(DTYPES | st.sampled_from(["float", "int"]), SHAPES), max_size=3))
    steps = []
    for at in range(draw(st.integers(0, 4))):
        slot = st.integers(0, max(len(inputs) + at - 1, 0)) | OPERAND
        steps.append((draw(NAMES), len(inputs) + at, draw(st.lists(slot, max_size=3)), draw(PARAMS)))
    outputs = draw(st.lists(st.integers(0, len(inputs) + len(steps)), max_size=3))
    donated = draw(st.lists(st.integers(0, 3), max_size=2))
    return ("define", draw(st.integers(0, 2)), [], {"inputs": inputs, "donated": donated, "steps": steps, "outputs": outputs})  # fmt: skip


CALL = st.tuples(
    st.just("call"),
    st.lists(st.integers(0, 40), max_size=3),
    st.lists(OPERAND, max_size=3),
    st.integers(0, 2),
)
SETUP = json.dumps(
    [full(at, *shape, dtype=dtype) for at, (shape, dtype) in enumerate([((2, 3), "float32"), ((3,), "float64"), ((2,), "int64"), ((), "float32"), ((0, 2), "uint8"), ((2, 2), "bool"), ((3, 3), "float32")])]
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP | routines() | CALL | JSON, max_size=8))
def test_any_tape(tape: Any) -> None:
    """Nothing but its own errors comes out of the machine, and what it counts is what it holds."""
    machine = NumpyMachine(max_bytes=100_000, max_handles=30)
    machine.run(SETUP)
    for part in [tape, *[[step] for step in tape]]:
        with contextlib.suppress(TensorError, QuotaError):
            assert isinstance(json.loads(machine.run(json.dumps(part))), list)
        assert machine.held_bytes == sum(size_bytes(kept.spec) for kept in machine.arrays.values())
        for kept in machine.arrays.values():
            assert np.shape(kept.value) == kept.spec[1]
            if kept.spec[0] not in {"float", "int"}:
                assert kept.value.dtype.name == kept.spec[0]
    machine.run(json.dumps([["free", None, list(machine.arrays), None]]))
    assert (machine.held_bytes, machine.arrays) == (0, {})


@settings(max_examples=100)
@given(st.text())
def test_any_text(text: str) -> None:
    with contextlib.suppress(TensorError):
        NumpyMachine().run(text)


async def test_a_template_that_cannot_load_numpy_serves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = template_client.TEMPLATE_CODE.replace(
        "from propeller", "sys.modules['numpy'] = None; from propeller"
    )
    monkeypatch.setattr(template_client, "TEMPLATE_CODE", without)
    async with Sandbox(tmp_path) as sandbox:
        before = sandbox.template_pid
        outcome = await sandbox.run(ProgramRun("a", await add(sandbox, sender(GOOD))))
        assert outcome.error is not None
        assert outcome.error.startswith("sandbox: cannot start a process: ")
        assert "numpy" in outcome.error
        assert (await sandbox.run(ProgramRun("good", await add(sandbox, command(""))))).error is None
        assert sandbox.template_pid == before
