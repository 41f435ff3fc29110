"""What is left when processes die."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

import propeller
from propeller.digests import digest_of
from propeller.wasm import template_client
from propeller.wasm.messages import StartTask, TemplateReady, decode_reply, encode
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun
from propeller.wasm.sandbox import Sandbox
from support.guests import add, children, command, is_waiting
from support.net import eventually

FOREVER = command(
    "(drop (call $write (i32.const 2) (i32.const 64) (i32.const 3))) (loop $l (br $l))", data="up\\n"
)
GOOD = command("")


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_template_killed(tmp_path: Path) -> None:
    """Running tasks fail with a clear error, their processes end, and the next one works."""
    async with Sandbox(tmp_path) as sandbox:
        digest, good = await add(sandbox, FOREVER), await add(sandbox, GOOD)
        up = asyncio.Event()
        running = asyncio.create_task(sandbox.run(ProgramRun("a", digest), lambda _: up.set()))
        await asyncio.wait_for(up.wait(), 10)
        task = max(children(sandbox.template_pid))  # the compiler's process may not be gone yet
        before = sandbox.template_pid
        os.kill(before, signal.SIGKILL)
        outcome = await asyncio.wait_for(running, 10)
        assert outcome.error == "sandbox: its process ended unexpectedly, and the task with it"
        await eventually(lambda: not alive(task))
        assert (await sandbox.run(ProgramRun("a", good))).error is None
        assert sandbox.template_pid != before


async def test_template_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than its socket holds: all are run once it reads again, a stop among them."""
    async with Sandbox(tmp_path) as sandbox:
        good, forever = await add(sandbox, GOOD), await add(sandbox, FOREVER)
        refused = 0
        send_fds = socket.send_fds

        def counting(*arguments: Any) -> int:
            nonlocal refused
            try:
                return send_fds(*arguments)
            except OSError:
                refused += 1
                raise

        monkeypatch.setattr(socket, "send_fds", counting)
        os.kill(sandbox.template_pid, signal.SIGSTOP)
        running = [asyncio.create_task(sandbox.run(ProgramRun("stopped", forever)))]
        running += [asyncio.create_task(sandbox.run(ProgramRun(str(n), good))) for n in range(250)]
        await eventually(lambda: refused > 3)
        assert await sandbox.kill("stopped")
        os.kill(sandbox.template_pid, signal.SIGCONT)
        errors = [outcome.error for outcome in await asyncio.gather(*running)]
        assert errors == ["stopped before completion"] + [None] * 250


BROKEN = """
import os, sys, time
marker, ready = {marker!r}, {ready!r}
if not os.path.exists(marker):
    open(marker, "w").close()
    os.write(0, ready)
    os.read(0, 65536)
    os.write(0, {said!r})
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\n",
        b'{"message": "TaskEnded", "id": 1}\n',
        b'{"message": "KillTask", "id": 1}\n',
        b"x" * 70_000,
    ],
)
async def test_template_that_says_what_none_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """It is replaced like one that died: what ran fails with a clear error, and the next run works."""
    broken = BROKEN.format(marker=str(tmp_path / "marker"), ready=encode(TemplateReady(())), said=said)
    monkeypatch.setattr(template_client, "TEMPLATE_CODE", broken + template_client.TEMPLATE_CODE)
    async with Sandbox(tmp_path / "sandbox") as sandbox:
        before = sandbox.template_pid
        with pytest.raises(ProgramError, match=r"^sandbox: its process ended unexpectedly"):
            await asyncio.wait_for(add(sandbox, GOOD), 10)
        assert not alive(before)
        assert (await sandbox.run(ProgramRun("a", digest_of(GOOD)))).error is None


# What the end of a task that ends with the template means to it while its interpreter is finalized.
ENDING = "import signal; signal.raise_signal(signal.SIGCHLD); [0 for _ in range(9)]"


async def test_template_ends_without_a_word(tmp_path: Path) -> None:
    """The signals of the tasks that end with it have nowhere to go, and nobody is told of that."""
    folders = [str(Path(file).parents[1]) for file in (propeller.__file__, str(wasmtime.__file__))]
    os.mkfifo(tmp_path / "task")  # so that no task gets to know what it is to do
    control, theirs = socket.socketpair()
    with control:
        with theirs:
            template = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    f"{template_client.TEMPLATE_CODE}; {ENDING}",
                    "0",
                    str(tmp_path),
                    "0",
                    *folders,
                ],
                stdin=theirs.fileno(),
                stderr=subprocess.PIPE,
                text=True,
            )
        assert isinstance(decode_reply(await asyncio.to_thread(control.recv, 65536)), TemplateReady)
        with Path(os.devnull).open("wb") as nothing:
            request = StartTask(1, str(tmp_path / "task"), 60, 9, 8)
            socket.send_fds(control, [encode(request)], [nothing.fileno()] * 3)
        (task,) = await eventually(lambda: children(template.pid))
    _, said = await asyncio.to_thread(template.communicate, timeout=20)
    assert (said, template.returncode) == ("", 0)
    await eventually(lambda: not alive(task))


async def test_task_killed_from_outside(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        up = asyncio.Event()
        running = asyncio.create_task(
            sandbox.run(ProgramRun("a", await add(sandbox, FOREVER)), lambda _: up.set())
        )
        await asyncio.wait_for(up.wait(), 10)
        for pid in children(sandbox.template_pid):  # the compiler's process may not be gone yet
            os.kill(pid, signal.SIGKILL)
        outcome = await running
        assert outcome.error == "the task's process was killed from outside (is the device out of memory?)"


async def test_closed_while_running(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        up = asyncio.Event()
        running = asyncio.create_task(
            sandbox.run(ProgramRun("a", await add(sandbox, FOREVER)), lambda _: up.set())
        )
        await asyncio.wait_for(up.wait(), 10)
        pids = [sandbox.template_pid, *children(sandbox.template_pid)]
    assert (await running).error is not None
    await eventually(lambda: not any(map(alive, pids)))
    assert list((tmp_path / "tasks").iterdir()) == []


PROPLET = """
import asyncio, sys
from pathlib import Path
from propeller.wasm.sandbox import ProgramRun, Sandbox

async def main():
    async with Sandbox(Path(sys.argv[1])) as sandbox:
        wasm = Path(sys.argv[2]).read_bytes()
        await sandbox.add(sys.argv[3], wasm)
        runs = [sandbox.run(ProgramRun(str(n), sys.argv[3]), lambda _: print(sandbox.template_pid, flush=True)) for n in range(2)]
        await asyncio.gather(*runs)

asyncio.run(main())
"""


async def test_parent_killed(tmp_path: Path) -> None:
    """No process survives the proplet's death, and the next sandbox removes what it left on disk."""
    program = tmp_path / "forever.wasm"
    program.write_bytes(FOREVER)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROPLET, tmp_path, program, digest_of(FOREVER), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    template = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    await parent.stdout.readline()
    pids = [template, *children(template)]
    assert len(pids) in {3, 4}  # on a busy machine, one is forked ahead of the next task by now
    async with Sandbox(tmp_path):  # beside it: takes nothing away from one that lives
        assert len(list((tmp_path / "tasks").iterdir())) == 2
    parent.kill()
    await parent.wait()
    await eventually(lambda: not any(map(alive, pids)))
    assert len(list((tmp_path / "tasks").iterdir())) == 1
    async with Sandbox(tmp_path) as sandbox:
        assert len(list((tmp_path / "tasks").iterdir())) == 1
        assert (await sandbox.run(ProgramRun("a", await add(sandbox, GOOD)))).error is None


@contextlib.asynccontextmanager
async def running(sandbox: Sandbox, digest: str) -> AsyncIterator[None]:
    """A run that does not end by itself."""
    up = asyncio.Event()
    run = asyncio.create_task(sandbox.run(ProgramRun("forever", digest), lambda _: up.set()))
    await eventually(lambda: up.is_set() or run.done())
    assert not run.done(), run.result()
    yield
    await sandbox.kill("forever")
    await run


async def forked_ahead(sandbox: Sandbox) -> int:
    """The process that waits for a task, while nothing runs."""
    found: list[int] = []

    def is_alone() -> bool:
        found[:] = children(sandbox.template_pid)
        return len(found) == 1 and is_waiting(found[0])

    await eventually(is_alone)
    return found[0]


async def test_a_process_is_forked_ahead_for_the_program_that_ran_last(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        forever, good = await add(sandbox, FOREVER), await add(sandbox, GOOD)
        await eventually(lambda: not children(sandbox.template_pid))
        async with running(sandbox, forever):
            (first,) = children(sandbox.template_pid)
        waiting = await forked_ahead(sandbox)
        assert waiting != first
        async with running(sandbox, forever):
            assert waiting in children(sandbox.template_pid)
            status = Path(f"/proc/{waiting}/status").read_text()
            assert "NoNewPrivs:\t1\n" in status
            assert "seccomp" not in await sandbox.protections() or "Seccomp:\t2\n" in status
        assert (await forked_ahead(sandbox)) != waiting

        # It is of no use to another program, nor to one that needs other limits of the runtime.
        waiting = await forked_ahead(sandbox)
        assert (await sandbox.run(ProgramRun("a", good))).error is None
        await eventually(lambda: not alive(waiting))
        waiting = await forked_ahead(sandbox)
        limited = await sandbox.run(ProgramRun("a", good, limits=Limits(fuel=1_000_000)))
        assert limited.error is None
        assert "fuel" in limited.metrics
        await eventually(lambda: not alive(waiting))

        # Nobody misses one that was killed.
        waiting = await forked_ahead(sandbox)
        os.kill(waiting, signal.SIGKILL)
        await eventually(lambda: not alive(waiting))
        for _ in range(3):
            assert (await sandbox.run(ProgramRun("a", good, limits=Limits(fuel=1_000_000)))).error is None
        pids = [sandbox.template_pid, await forked_ahead(sandbox)]
    await eventually(lambda: not any(map(alive, pids)))


async def test_a_process_forked_ahead_gives_back_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = "import propeller.wasm.template as t; t._SPARE_LIFE_S = 1; t.main()"
    code = template_client.TEMPLATE_CODE.replace("from propeller.wasm.template import main; main()", short)
    monkeypatch.setattr(template_client, "TEMPLATE_CODE", code)
    async with Sandbox(tmp_path) as sandbox:
        good = await add(sandbox, GOOD)
        assert (await sandbox.run(ProgramRun("a", good))).error is None
        waiting = await forked_ahead(sandbox)
        await eventually(lambda: not children(sandbox.template_pid))
        assert not alive(waiting)
        assert (await sandbox.run(ProgramRun("a", good))).error is None


async def test_a_compiled_program_that_cannot_be_loaded_ahead_is_made_again(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        forever = await add(sandbox, FOREVER)
        await eventually(lambda: not children(sandbox.template_pid))
        async with running(sandbox, forever):
            (compiled,) = (tmp_path / "programs").rglob("*.native")
            compiled.unlink()
            compiled.write_bytes(b"damaged")
            compiled.chmod(0o600)
        await eventually(lambda: not children(sandbox.template_pid))
        async with running(sandbox, forever):
            assert compiled.read_bytes() != b"damaged"


async def test_template_is_lean(tmp_path: Path) -> None:
    """It has one thread, so that forking it is safe, and takes little memory."""
    async with Sandbox(tmp_path) as sandbox:
        await sandbox.run(ProgramRun("a", await add(sandbox, GOOD)))
        status = Path(f"/proc/{sandbox.template_pid}/status").read_text()
        assert "Threads:\t1\n" in status
        resident = int(status.split("VmRSS:")[1].split()[0])
        assert resident < 40_000  # kB
