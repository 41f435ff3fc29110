"""Functions of the proplet's own in confined processes: what they give back, and how they fail. ``eval`` stands in for one."""

import os
from pathlib import Path

import pytest

from propeller.wasm.external import ExternalRuntime
from propeller.wasm.host_calls import HostCall, HostCallError
from propeller.wasm.program_run import Limits
from propeller.wasm.sandbox import Sandbox
from support.net import eventually, has_ended


def call(code: str, limits: Limits = Limits(), **files: bytes | Path) -> HostCall:  # noqa: B008 - frozen
    return HostCall("builtins", "eval", code, files, limits)


async def refusal(sandbox: Sandbox, code: str, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    with pytest.raises(HostCallError) as caught:
        async with sandbox.call(call(code, limits)):
            raise AssertionError("it gave something back")
    return str(caught.value)


async def test_files_go_in_and_come_out(sandbox: Sandbox, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.write_bytes(b"two")
    code = "str(open('out/sum', 'w').write(open('in/one').read() + open('in/two').read()))"
    async with sandbox.call(call(code, one=b"one ", two=linked)) as answer:
        assert answer.value == "7"
        assert (answer.out / "sum").read_text() == "one two"
        folder = answer.out.parent
    assert not folder.exists()


async def test_it_is_confined(sandbox: Sandbox) -> None:
    assert "PermissionError" in await refusal(sandbox, f"open({__file__!r}).read()")
    assert "Error" in await refusal(sandbox, "__import__('socket').socket()")


async def test_how_it_fails(sandbox: Sandbox) -> None:
    refused = "(_ for _ in ()).throw(__import__('propeller.errors').errors.InvalidError('w: is wrong'))"
    assert await refusal(sandbox, f"next({refused})") == "w: is wrong"
    assert await refusal(sandbox, "int('x')") == (
        "sandbox: ValueError: invalid literal for int() with base 10: 'x'"
    )
    assert await refusal(sandbox, "__import__('os')._exit(3)") == (
        "its process ended with status 3 (is the device out of memory?)"
    )
    limits = Limits(wall_time_s=0.2)
    assert await refusal(sandbox, "[None for _ in iter(int, 1)]", limits) == (
        "wall_time_s: over the limit of 0.2 s"
    )
    small = Limits(memory_bytes=2**20, tensor_bytes=2**20)
    assert await refusal(sandbox, "str(len(bytes(2**30)))", small) == (
        "tensor_bytes: over the limit of 1048576 bytes"
    )


async def test_beside_an_external_runtime_a_template_is_started_for_it(tmp_path: Path) -> None:
    async with ExternalRuntime("true", tmp_path / "sandbox") as runtime:
        async with runtime.call(call("str(__import__('os').getppid())")) as answer:
            template = int(answer.value)
        async with runtime.call(call("str(__import__('os').getppid())")) as answer:
            assert int(answer.value) == template
    await eventually(lambda: has_ended(template))


async def test_all_processes_of_a_sandbox_together_use_the_processors_that_it_has(tmp_path: Path) -> None:
    code = "str(len(__import__('os').sched_getaffinity(0)))"
    async with Sandbox(tmp_path / "one", processors=1) as one, one.call(call(code)) as answer:
        assert answer.value == "1"
    async with Sandbox(tmp_path / "all") as every, every.call(call(code)) as answer:
        assert answer.value == str(len(os.sched_getaffinity(0)))
