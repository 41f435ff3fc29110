"""Templates of native programs: what they are, when there is one, and that nothing of a task is left for the next."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from propeller.digests import digest_of
from propeller.native.build import native_program
from propeller.native.interpreter import Interpreter
from propeller.native_program import NativeProgram, ScriptMetadata
from propeller.wasm import native_templates
from propeller.wasm.native_templates import Command, NativeTemplates
from propeller.wasm.program_run import MIB, Limits, ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.task_users import NEEDED
from support.native_programs import (
    DATA,
    ENVIRONMENT,
    MODEL,
    compile_libraries,
    interpreter,
    python_with,
    run_native,
    training,
)
from support.net import eventually

LOOKS = """
import sys
print(sorted({"sklearn.linear_model", "this", "wave", "numpy"} & known))
return Update(model, 1)
"""

LEAVES = """
import random, os
import numpy as np
print(hasattr(np, "left"), os.environ.get("LEFT"), os.path.exists("out/left"), np.random.random(), random.random())
np.left, os.environ["LEFT"] = 1, "1"
open("out/left", "w").close()
return Update(model, 1)
"""


async def run(
    sandbox: Sandbox,
    body: str,
    said: list[str],
    *,
    before: str = "",
    dependencies: tuple[str, ...] = (),
    imports: tuple[str, ...] = (),
) -> RunOutcome:
    script = training(body, before)
    program = NativeProgram("program", {"program": script}, ("train",), "", dependencies, imports).encode()
    await sandbox.keep(digest_of(program), program)
    asked = ProgramRun(
        "task",
        digest_of(program),
        env=ENVIRONMENT,
        files={"model.json": MODEL, "dataset.json": DATA},
        limits=Limits(wall_time_s=60),
    )
    return await sandbox.run(asked, said.append)


def pid_of(sandbox: Sandbox) -> int:
    assert sandbox.native_template_pid is not None
    return sandbox.native_template_pid


async def test_tasks_of_a_program_are_forked_of_one_process(sandbox: Sandbox) -> None:
    said: list[str] = []
    body = "import os\nprint(os.getppid())\nreturn Update(model, 1)"
    outcomes = await asyncio.gather(
        *(run_native(sandbox, training(body), on_stderr=said.append, id_=f"{n}") for n in range(3))
    )
    assert [one.error for one in outcomes] == [None] * 3
    assert set(said) == {str(pid_of(sandbox))}


async def test_it_is_confined_and_has_nothing_of_the_proplet(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPLET_CLIENT_KEY", "very-secret")
    assert (await run_native(sandbox, training("return Update(model, 1)"))).error is None
    process = psutil.Process(pid_of(sandbox))
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert (status["Threads"], status["NoNewPrivs"], status["Seccomp"]) == ("1", "1", "2")
    assert int(status["CapBnd"], 16) == 0 or os.geteuid() != 0
    assert int(status["CapPrm"], 16) & ~sum(1 << bit for bit in NEEDED.values()) == 0
    assert "very-secret" not in Path(f"/proc/{process.pid}/environ").read_text()
    opened = [str(one.readlink()) for one in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert {one for one in opened if not one.startswith("socket:")} == {"/dev/null"}
    assert process.open_files() == []


async def test_it_imports_what_the_program_requires_and_nothing_else(sandbox: Sandbox) -> None:
    """Of what the program says that it imports, what its requirements have: not what else the interpreter can import."""
    compile_libraries()
    said: list[str] = []
    outcome = await run(
        sandbox,
        LOOKS,
        said,
        before="import sys\nknown = set(sys.modules)",
        dependencies=("scikit-learn>=1.0", "numpy"),
        imports=("numpy", "sklearn.linear_model", "this", "wave"),
    )
    assert outcome.error is None, said
    assert said == ["['numpy', 'sklearn.linear_model']"]
    assert outcome.metrics["cpu_ms"] < 1000  # the import alone takes as much


async def test_a_task_leaves_nothing_for_the_next_and_draws_other_numbers(sandbox: Sandbox) -> None:
    said: list[str] = []
    for _ in range(2):
        assert (await run_native(sandbox, training(LEAVES), on_stderr=said.append)).error is None
    (*first, a, b), (*second, c, d) = (line.split() for line in said)
    assert first == second == ["False", "None", "False"]
    assert a != c
    assert b != d


@pytest.mark.parametrize(
    "end",
    [
        "raise KeyboardInterrupt",
        "raise SystemExit(3)",
        "class Odd(BaseException): pass\nraise Odd",
        "os._exit(5)",
        "ctypes.string_at(0)",
    ],
)
async def test_however_a_task_ends_its_template_goes_on(sandbox: Sandbox, end: str) -> None:
    outcome = await run_native(sandbox, training(end, "import ctypes, os"))
    assert outcome.error is not None
    assert outcome.exit_code != 0
    pid = pid_of(sandbox)
    said: list[str] = []
    body = "import atexit\natexit.register(print, 'at its exit')\nreturn Update(model, 1)"
    assert (await run_native(sandbox, training(body), on_stderr=said.append)).error is None
    assert said in (["at its exit"], [])
    assert pid_of(sandbox) != pid  # another program's
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie" or await _ends(pid)


async def _ends(pid: int) -> bool:
    await eventually(lambda: not psutil.pid_exists(pid), 5, "the other program's template is gone")
    return True


async def test_one_that_is_killed_is_replaced(sandbox: Sandbox) -> None:
    script = training("return Update(model, 1)")
    assert (await run_native(sandbox, script)).error is None
    pid = pid_of(sandbox)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: sandbox.native_template_pid is None, 5, "its end is noticed")
    assert (await run_native(sandbox, script)).error is None
    assert pid_of(sandbox) != pid


async def test_it_ends_when_no_task_comes(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_templates, "IDLE_S", 0.2)
    assert (await run_native(sandbox, training("return Update(model, 1)"))).error is None
    pid = pid_of(sandbox)
    await eventually(lambda: sandbox.native_template_pid is None, 5, "it is given up")
    await _ends(pid)


async def test_another_program_while_tasks_run_has_interpreters_of_its_own(sandbox: Sandbox) -> None:
    long = asyncio.create_task(
        run_native(sandbox, training("import time\ntime.sleep(60)\nreturn Update(model, 1)"), id_="long")
    )
    await eventually(
        lambda: bool(sandbox.native_template_pid and psutil.Process(sandbox.native_template_pid).children()),
        20,
        "it runs",
    )
    said: list[str] = []
    body = "import os\nprint(os.getppid())\nreturn Update(model, 1)"
    assert (await run_native(sandbox, training(body), on_stderr=said.append)).error is None
    assert said == [str(sandbox.template_pid)]
    await sandbox.kill("long")
    assert (await long).error == "stopped before completion"


async def test_a_library_that_starts_threads_is_not_forked(tmp_path: Path) -> None:
    """OpenBLAS has a thread for each processor that it is to use: such a template starts no task."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("OpenBLAS starts no thread where there is one processor")
    two = Interpreter.find(interpreter().command, threads=2)
    said: list[str] = []
    body = "import os\nimport numpy as np\nnp.ones((300, 300)) @ np.ones((300, 300))\nprint(os.getppid())\nreturn Update(model, 1)"
    async with Sandbox(tmp_path / "sandbox", native=two) as sandbox:
        for _ in range(2):
            assert (await run_native(sandbox, training(body), on_stderr=said.append)).error is None
        assert said == [str(sandbox.template_pid)] * 2
        assert sandbox.native_template_pid is None


STARTS = """
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""
"""A package with a thread after its import, as JAX's backend has them: no fork keeps it."""


async def test_one_that_has_a_thread_after_its_imports_is_not_forked_and_the_log_says_why_once(
    tmp_path: Path,
) -> None:
    python = python_with(tmp_path / "python", starts=STARTS)
    said: list[str] = []
    script = training(
        "print(os.getppid(), threading.active_count())\nreturn Update(model, 1)",
        "import os, starts, threading",
    )
    with capture_logs() as logs:
        async with Sandbox(tmp_path / "sandbox", native=python) as sandbox:
            for _ in range(2):
                outcome = await run_native(
                    sandbox, script, dependencies=("starts",), imports=("starts",), on_stderr=said.append
                )
                assert outcome.error is None, said
            assert said == [f"{sandbox.template_pid} 2"] * 2
            assert sandbox.native_template_pid is None
    reasons = [
        line["reason"] for line in logs if line["event"] == "tasks of the program start an interpreter each"
    ]
    assert reasons == ["2 threads after the import of starts"]


async def test_without_room_for_both_each_task_has_an_interpreter_and_is_confined_likewise(
    tmp_path: Path,
) -> None:
    one = Limits().process_bytes(host_tensors=False)
    body = """
import os
print(os.getppid())
for name, act in {"read": lambda: open("/etc/shadow"), "fork": os.fork, "socket": socket.socket, "task": lambda: open("task.json")}.items():
    try:
        act()
        print("GOT", name)
    except OSError:
        pass
return Update(model, 1)
"""
    script = training(body, "import socket")
    for bound in (2 * one - 1, 2 * one):
        said: list[str] = []
        async with Sandbox(tmp_path / f"{bound}", native=interpreter(), native_memory=bound) as sandbox:
            outcome = await run_native(sandbox, script, on_stderr=said.append)
            assert outcome.error is None
            program = NativeProgram("program", {"program": script}, ("train",)).encode()
            is_warm = bound == 2 * one
            assert said == [str(pid_of(sandbox) if is_warm else sandbox.template_pid)]
            assert sandbox.memory_bound(digest_of(program), Limits()) == (2 * one if is_warm else one)


async def test_whatever_runs_next_has_the_room_of_an_idle_one(tmp_path: Path) -> None:
    """Also a program that has no template itself: its task reserved what it may take, and nobody what another's template has."""
    small, large = Limits(wall_time_s=60, memory_bytes=256 * MIB), Limits(wall_time_s=60)
    one = large.process_bytes(host_tensors=False)
    done, odd = training("return Update(model, 1)"), training("import sys\nreturn Update(model, 1)")
    async with Sandbox(tmp_path / "sandbox", native=interpreter(), native_memory=2 * one - 1) as sandbox:
        assert (await run_native(sandbox, done, limits=small)).error is None
        pid = pid_of(sandbox)
        assert (await run_native(sandbox, odd, limits=large)).error is None
        assert sandbox.native_template_pid is None
        await _ends(pid)
    async with Sandbox(tmp_path / "other", native=interpreter()) as sandbox:
        cold = ("numpy.is_no_module",)
        for script, imports, is_warm in ((odd, cold, False), (done, (), True), (odd, cold, False)):
            outcome = await run_native(sandbox, script, dependencies=("numpy",), imports=imports)
            assert outcome.error is None
            assert (sandbox.native_template_pid is not None) == is_warm


async def test_none_is_started_once_they_are_closed(tmp_path: Path) -> None:
    """A task that was still being prepared when its sandbox ended would leave one behind."""
    templates = NativeTemplates(0, tmp_path, None)
    await templates.close()

    def command() -> Command:
        raise AssertionError("it is asked for")

    stopped = asyncio.get_running_loop().create_future()
    async with templates.taken(("sha256:0", 1), command, stopped) as client:
        assert client is None


STAYS = """
import os, time
if os.fork() == 0:
    os.setpgid(0, 0)
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
"""
"""A package that leaves a process behind, whose parent has ended."""

HANGS = "import time\ntime.sleep(600)"


async def test_a_process_that_a_library_starts_at_its_import_ends(tmp_path: Path) -> None:
    """A task may start none; one that the template started for it would outlive them all, with the device's user."""
    python = python_with(tmp_path / "python", stays=STAYS)
    async with Sandbox(tmp_path / "sandbox", native=python) as sandbox:
        outcome = await run_native(
            sandbox, training("return Update(model, 1)"), dependencies=("stays",), imports=("stays",)
        )
        assert outcome.error is None
        assert sandbox.native_template_pid is None  # it is not forked
        await eventually(lambda: not _running(python.command), 5, "no process is left")


async def test_a_process_of_a_library_that_has_ended_is_none(tmp_path: Path) -> None:
    python = python_with(
        tmp_path / "python", ends="import os, time\nif os.fork() == 0:\n    os._exit(0)\ntime.sleep(0.2)"
    )
    async with Sandbox(tmp_path / "sandbox", native=python) as sandbox:
        outcome = await run_native(
            sandbox, training("return Update(model, 1)"), dependencies=("ends",), imports=("ends",)
        )
        assert outcome.error is None
        assert sandbox.native_template_pid is not None


async def test_one_that_still_imports_ends_at_once_with_its_task_and_sandbox(tmp_path: Path) -> None:
    python = python_with(tmp_path / "python", hangs=HANGS)
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    script = training("return Update(model, 1)")

    async def begin(sandbox: Sandbox) -> "asyncio.Task[RunOutcome]":
        made = asyncio.create_task(
            run_native(sandbox, script, dependencies=("hangs",), imports=("hangs",), id_="hangs")
        )
        await eventually(lambda: sandbox.native_template_pid, 20, "its template has been started")
        return made

    async with Sandbox(tmp_path / "sandbox", native=python) as sandbox:
        task = await begin(sandbox)
        await sandbox.kill("hangs")
        assert (await task).error == "stopped before completion"
        assert (await run_native(sandbox, script)).error is None
        await eventually(lambda: len(_running(python.command)) == 1, 2, "the other program's alone is left")
        task = await begin(sandbox)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert (await task).error == "sandbox: closed"
    gc.collect()
    await asyncio.sleep(0)
    assert problems == []


PROPLET = """
import asyncio, sys
from pathlib import Path
from propeller.digests import digest_of
from propeller.native.interpreter import Interpreter
from propeller.native_program import NativeProgram
from propeller.wasm.sandbox import ProgramRun, Sandbox

async def main(python, folder):
    program = NativeProgram("program", {"program": ""}, (), "", ("hangs",), ("hangs",)).encode()
    async with Sandbox(Path(folder), native=Interpreter.find(Path(python))) as sandbox:
        await sandbox.keep(digest_of(program), program)
        task = asyncio.create_task(sandbox.run(ProgramRun("task", digest_of(program))))
        while sandbox.native_template_pid is None:
            await asyncio.sleep(0.05)
        print(sandbox.native_template_pid, flush=True)
        await task

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_proplet_that_is_killed_leaves_no_template_that_still_imports(tmp_path: Path) -> None:
    """It reads nothing until its imports have ended, which may be never."""
    python = python_with(tmp_path / "python", hangs=HANGS)
    with subprocess.Popen(
        [sys.executable, "-c", PROPLET, python.command, tmp_path / "sandbox"], stdout=subprocess.PIPE
    ) as proplet:
        assert proplet.stdout is not None
        try:
            pid = int(await asyncio.to_thread(proplet.stdout.readline))
            file = Path(f"/proc/{pid}/status")
            await eventually(lambda: "Seccomp:\t2" in file.read_text(), 20, "it is confined, and imports")
            await asyncio.sleep(0.5)
            assert _running(python.command) == [pid]
        finally:
            proplet.kill()
    await eventually(lambda: not _running(python.command), 5, "it is gone with the proplet")


ENDS = {
    "raise KeyboardInterrupt": 130,
    "raise SystemExit(2**40)": 1,
    "os._exit(5)": 5,
    "sys.stdout.close()\nreturn Update(model, 1)": 0,
    "os.close(1)\nreturn Update(model, 1)": 120,
    "os.close(2)\nprint('x')\nreturn Update(model, 1)": 120,
    "atexit.register(lambda: 1 / 0)\nreturn Update(model, 1)": 0,
}


async def test_a_forked_task_ends_as_an_interpreter_does(sandbox: Sandbox, tmp_path: Path) -> None:
    async with Sandbox(tmp_path / "fresh", native=interpreter(), native_memory=0) as fresh:
        for body, code in ENDS.items():
            script = training(body, "import atexit, os, sys")
            codes = [(await run_native(one, script)).exit_code for one in (sandbox, fresh)]
            assert codes == [code, code], body


SETS_UP = "import os\nos.environ['FROM_PACKAGE'] = 'set'\nimport helper"


async def test_a_task_finds_what_a_fresh_interpreter_would_have(tmp_path: Path) -> None:
    """Variables that a library has set at its import, and the program's own modules, also where a library has one of that name."""
    python = python_with(tmp_path / "python", package=SETS_UP, helper="who = 'the library'")
    body = "print(os.environ['FROM_PACKAGE'], helper.who, os.environ['OMP_NUM_THREADS'])\nreturn Update(model, 1)"
    modules = {"program": training(body, "import os, package, helper"), "helper": "who = 'the program'"}
    program = NativeProgram("program", modules, ("train",), "", ("package",), ("package",)).encode()
    run = ProgramRun(
        "task", digest_of(program), env=ENVIRONMENT, files={"model.json": MODEL, "dataset.json": DATA}
    )
    for memory in (None, 0):
        said: list[str] = []
        async with Sandbox(tmp_path / f"{memory}", native=python, native_memory=memory) as sandbox:
            await sandbox.keep(digest_of(program), program)
            outcome = await sandbox.run(run, said.append)
            assert outcome.error is None, said
            assert (sandbox.native_template_pid is not None) == (memory is None)
        assert said == ["set the program 1"]


@pytest.mark.parametrize(
    ("line", "noted"),
    [
        ('os.environ["KERAS_BACKEND"] = "torch"', False),
        ('os.environ.setdefault("KERAS_BACKEND", "torch")', False),
        ('os.environ |= {"KERAS_BACKEND": "torch"}', False),
        ('os.putenv("KERAS_BACKEND", "torch")', False),
        ('del os.environ["KERAS_BACKEND"]', False),
        ('from os import environ\nenviron.update(KERAS_BACKEND="torch")', False),
        ('backend = os.environ["KERAS_BACKEND"]', True),
        ('backend = os.environ.get("KERAS_BACKEND")', True),
        ('settings = {}\nsettings["environ"] = settings.setdefault("environ", 1)', True),
    ],
)
def test_a_script_that_sets_a_library_up_imports_it_itself(tmp_path: Path, line: str, *, noted: bool) -> None:
    """Keras chooses what it computes with when it is imported: before the script, it would be another."""
    script = tmp_path / "program.py"
    script.write_text(training("return Update(model, 1)", f"import os\n{line}\nimport keras"))
    assert native_program(script, ScriptMetadata()).imports == (("keras",) if noted else ())


def _running(command: Path) -> list[int]:
    """The processes of an interpreter."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == [str(command)]:
                found.append(process.pid)
    return found
