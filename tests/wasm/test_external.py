"""Programs run by a runtime of the operator's: a small stand-in for ``wasmtime`` that notes how it was called."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from propeller.digests import digest_of
from propeller.wasm.external import ExternalRuntime
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome, StateFolder
from support.guests import OUT, command
from support.net import eventually, has_ended
from support.programs import echo

RUNTIME = """#!{python}
import json, os, signal, subprocess, sys
notes = {{"argv": sys.argv, "env": dict(os.environ), "pid": os.getpid()}}
notes["interruptible"] = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
open({notes!r} + ".new", "w").write(json.dumps(notes))
os.rename({notes!r} + ".new", {notes!r})  # whole, for whoever waits for it
if "CROWD" in os.environ:
    import threading, time
    for _ in range(int(os.environ["CROWD"])):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
if "OPEN" in os.environ:
    import time
    try:
        while True:
            os.dup(0)
    except OSError:
        time.sleep(600)
if "LINGER" in os.environ:
    subprocess.Popen(["sleep", "600"])
import wasmtime
arguments, invoked = sys.argv[2:], "_start"
wasi = wasmtime.WasiConfig()
env = []
while arguments[0].startswith("--"):
    flag, value, *arguments = arguments
    if flag == "--env":
        env.append((value, os.environ[value]))
    elif flag == "--invoke":
        invoked = value
    elif flag == "--dir":
        wasi.preopen_dir(*value.split("::"))
wasi.env = env
wasi.inherit_stdout()
wasi.inherit_stderr()
engine = wasmtime.Engine()
store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
linker.define_wasi()
store.set_wasi(wasi)
instance = linker.instantiate(store, wasmtime.Module.from_file(engine, arguments[0]))
try:
    value = instance.exports(store)[invoked](store, *map(int, arguments[1:]))
    if value is not None:
        print(value)
except wasmtime.ExitTrap as exit:
    sys.exit(exit.code)
"""


class Scene:
    def __init__(self, folder: Path, sandbox: ExternalRuntime) -> None:
        self.folder, self.sandbox = folder, sandbox

    async def run(self, wasm: bytes, **fields: Any) -> RunOutcome:
        await self.sandbox.keep(digest_of(wasm), wasm)
        return await self.sandbox.run(ProgramRun("t-1", digest_of(wasm), **fields))

    def notes(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "notes.json").read_text())
        return found

    def left(self) -> list[Path]:
        return [entry for own in (self.folder / "sandbox" / "tasks").iterdir() for entry in own.iterdir()]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    script = tmp_path / "runtime"
    script.write_text(RUNTIME.format(python=sys.executable, notes=str(tmp_path / "notes.json")))
    script.chmod(0o700)
    async with ExternalRuntime(str(script), tmp_path / "sandbox") as sandbox:
        made = Scene(tmp_path, sandbox)
        yield made
        assert made.left() == []


async def test_a_command_with_its_files(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPLET_CLIENT_KEY", "a secret of the proplet")
    large = "x" * (200 * 1024)
    lines: list[str] = []
    digest = digest_of(echo())
    await scene.sandbox.keep(digest, echo())
    env = {"REPLY": "fine", "SAY": "one\ntwo\n", "COPY": "1", "MODEL_DATA": large, "TOKEN": "hidden"}
    run = ProgramRun(
        "t-1", digest, env=env, files={"model.safetensors": large.encode()}, args=("--wasi=x", "y")
    )
    outcome = await scene.sandbox.run(run, lines.append)
    assert (outcome.error, outcome.stdout, lines) == (None, b"fine", ["one", "two"])
    assert outcome.out_files == {"update.safetensors": large.encode()}
    assert {"total_ms", "cpu_ms", "memory_peak_bytes", "run_ms"} <= set(outcome.metrics)
    notes = scene.notes()
    argv, seen = notes["argv"][1:], notes["env"]
    assert argv[:3] == ["run", "--wasi=x", "y"]
    assert argv[-1].endswith("/proplet_t-1.wasm")
    assert sorted(argv[at + 1] for at, one in enumerate(argv) if one == "--env") == [
        "COPY",
        "REPLY",
        "SAY",
        "TOKEN",
    ]
    assert "hidden" not in " ".join(argv)
    assert set(seen) - {"PATH", "HOME", "LANG", "LC_CTYPE"} == {"COPY", "REPLY", "SAY", "TOKEN"}


async def test_device_state_is_a_folder_more(scene: Scene) -> None:
    target = scene.folder / "first"
    outcome = await scene.run(echo(), env={"KEEP": "one "}, state=StateFolder(None, target))
    assert outcome.error is None
    assert (target / "n").read_text() == "one "
    failed = await scene.run(
        echo(), env={"KEEP": "two ", "FAIL": "1"}, state=StateFolder(target, scene.folder / "second")
    )
    assert failed.exit_code == 3
    assert not (scene.folder / "second").exists()
    limits = Limits(state_bytes=10)
    over = await scene.run(
        echo(), env={"KEEP": "x" * 11}, state=StateFolder(None, scene.folder / "third"), limits=limits
    )
    assert over.error == "state_bytes: over the limit of 10 bytes"
    assert (await scene.run(echo(), env={"REPLY": "x"})).error is None
    assert "::/state" not in " ".join(scene.notes()["argv"])


async def test_a_function_is_invoked_with_its_inputs(scene: Scene) -> None:
    outcome = await scene.run(echo(), export="add", inputs=("3", "5"))
    assert (outcome.error, outcome.stdout) == (None, b"8\n")
    argv = scene.notes()["argv"][1:]
    assert (argv[:3], argv[-2:]) == (["run", "--invoke", "add"], ["3", "5"])
    assert (await scene.run(echo(), export="_start", env={"REPLY": "x"})).stdout == b"x"
    assert "--invoke" not in scene.notes()["argv"]


@pytest.mark.parametrize(
    ("env", "limits", "met"),
    [
        ({"SPIN": "1"}, {"wall_time_s": 0.6}, "wall_time_s: over the limit of 0.6 s"),
        ({"REPLY": "x" * 5000}, {"stdout_bytes": 1024}, "stdout_bytes: over the limit of 1024 bytes"),
        ({"SAY": "x" * 5000}, {"stderr_bytes": 1024}, "stderr_bytes: over the limit of 1024 bytes"),
        ({"COPY": "1", "SPIN": "1"}, {"out_bytes": 100}, "out_bytes: over the limit of 100 bytes"),
        (
            {"CROWD": str(9 + 2 * (os.cpu_count() or 1)), "SPIN": "1"},
            {"threads": 4},
            "threads: over the limit of 4 threads",
        ),
        ({"OPEN": "1", "SPIN": "1"}, {"descriptors": 50}, "descriptors: over the limit of 50 descriptors"),
        ({}, {"module_bytes": 100}, "module_bytes: over the limit of 100 bytes"),
    ],
)
async def test_limits_are_enforced_from_outside(
    scene: Scene, env: dict[str, str], limits: dict[str, Any], met: str
) -> None:
    files = {"model.safetensors": b"x" * 1000}
    outcome = await scene.run(echo(), env=env, files=files, limits=Limits(**limits))
    assert (outcome.error, outcome.limit) == (met, met.split(":", maxsplit=1)[0])
    assert (await scene.run(echo(), env={"REPLY": "good"})).stdout == b"good"


async def test_an_unlinked_file_counts(scene: Scene) -> None:
    code = f"""
      (if (call $path_open (i32.const {OUT}) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 1)
        (i64.const 0x42) (i64.const 0) (i32.const 0) (i32.const 32)) (then unreachable))
      (if (call $path_unlink_file (i32.const {OUT}) (i32.const 64) (i32.const 4)) (then unreachable))
      (drop (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 1000)))
      (loop $l (br $l))"""
    outcome = await scene.run(command(code, data="file"), limits=Limits(out_bytes=999, wall_time_s=20))
    assert outcome.limit == "out_bytes"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"export": "--dir=/"}, "name: '--dir=/' is no function's: it would be an option of the runtime"),
        ({"env": {"--dir=/": "x"}}, "env: '--dir=/' is not the name of a variable"),
        ({"env": {"-S": "x"}}, "env: '-S' is not the name of a variable"),
        ({"env": {"": "x"}}, "env: '' is not the name of a variable"),
        (
            {"env": {"XDG_CACHE_HOME": "/proc/self/cwd/out"}},
            "env: XDG_CACHE_HOME would change the external runtime itself: give it another name",
        ),
    ],
)
async def test_names_are_no_options_of_the_runtime(scene: Scene, fields: dict[str, Any], says: str) -> None:
    assert (await scene.run(echo(), **fields)).error == says
    assert not (scene.folder / "notes.json").exists()


async def test_how_a_program_ended_is_told(scene: Scene) -> None:
    failed = await scene.run(echo(), env={"FAIL": "1"})
    assert (failed.error, failed.exit_code) == ("the program exited with code 3", 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"env": {"LD_PRELOAD": "/out/evil.so"}}, "env: LD_PRELOAD would change the external runtime itself"),
        ({"env": {"PATH": "/out"}}, "env: PATH would change"),
        ({"env": {"X": "x" * 140_000}}, "env: X is too long for an external runtime, 131072 bytes are taken"),
        ({"limits": Limits(fuel=5)}, "fuel: this proplet runs programs with an external runtime"),
        ({"inputs": ("1" * 3_000_000,), "export": "add"}, "cannot be started: Argument list too long"),
    ],
)
async def test_what_it_cannot_do_is_told(scene: Scene, fields: dict[str, Any], says: str) -> None:
    outcome = await scene.run(echo(), **fields)
    assert outcome.error is not None
    assert says in outcome.error


async def test_the_runtime_has_the_usual_interrupt(scene: Scene) -> None:
    """Also where the proplet was started in the background of a shell, which has it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert (await scene.run(echo())).error is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert scene.notes()["interruptible"]


async def test_host_tensors_need_the_built_in_sandbox(scene: Scene) -> None:
    component = b"\0asm\x0d\0\x01\0" + b"propeller:program/tensors@0.1.0"
    assert "--plain" in ((await scene.run(component)).error or "")


async def test_a_stop_ends_everything_that_the_runtime_started(scene: Scene) -> None:
    running = asyncio.create_task(scene.run(echo(), env={"SPIN": "1", "LINGER": "1"}))
    await eventually((scene.folder / "notes.json").exists)
    pid = scene.notes()["pid"]
    group = await eventually(
        lambda: (
            found if len(found := [p for p in psutil.process_iter() if _group(p.pid) == pid]) == 2 else None
        )
    )
    assert group is not None
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    await eventually(lambda: not any(p.is_running() and p.status() != "zombie" for p in group))


async def test_a_killed_proplet_leaves_no_runtime(scene: Scene) -> None:
    """The runtime is tied to the process that started it."""
    code = (
        "import asyncio, sys; from pathlib import Path; from propeller.wasm.external import ExternalRuntime\n"
        "from propeller.wasm.program_run import ProgramRun\n"
        "async def main():\n"
        "    async with ExternalRuntime(sys.argv[1], Path(sys.argv[2])) as sandbox:\n"
        "        await sandbox.run(ProgramRun('t', sys.argv[3], env={'SPIN': '1'}))\n"
        "asyncio.run(main())"
    )
    await scene.sandbox.keep(digest_of(echo()), echo())
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        str(scene.folder / "runtime"),
        str(scene.folder / "sandbox"),
        digest_of(echo()),
    )
    try:
        await eventually((scene.folder / "notes.json").exists)
    finally:
        child.kill()
        await child.wait()
    await eventually(lambda: has_ended(scene.notes()["pid"]))
    async with ExternalRuntime(str(scene.folder / "runtime"), scene.folder / "sandbox"):
        assert len(list((scene.folder / "sandbox" / "tasks").iterdir())) == 2  # ours, not the dead one's


def test_a_runtime_that_is_not_there(tmp_path: Path) -> None:
    for name in ("no-such-runtime", str(tmp_path)):
        with pytest.raises(ProgramError, match=r"PROPLET_EXTERNAL_WASM_RUNTIME: .* is not a program"):
            ExternalRuntime(name, tmp_path / "sandbox")


async def test_it_is_no_runtime(tmp_path: Path) -> None:
    broken = tmp_path / "runtime"
    broken.write_bytes(b"\x7fELF, but no more")
    broken.chmod(0o700)
    program = command("(nop)")
    async with ExternalRuntime(str(broken), tmp_path / "sandbox") as sandbox:
        await sandbox.keep(digest_of(program), program)
        lines: list[str] = []
        outcome = await sandbox.run(ProgramRun("t", digest_of(program)), lines.append)
        assert outcome.error == "the program exited with code 127"
        assert lines == [f"{broken}: Exec format error"]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
