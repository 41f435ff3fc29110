"""Which user a task is: one of its own where the proplet is root, tried from native code in a task's process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from propeller.wasm import confinement, task_users
from propeller.wasm.host_calls import HostCall, HostCallError
from propeller.wasm.program_run import Limits, ProgramRun, StateFolder
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.task_users import TaskUsers
from support.guests import add
from support.programs import echo

ROOT = os.name == "posix" and os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="needs root")

BREAKOUT = """
import ctypes, os, sys, threading
from propeller.wasm import confinement, folder_contents
from propeller.wasm.task_users import TaskUsers

folder, key, landlock, become = sys.argv[1:]
if become:
    os.setgroups([])
    os.setresgid(*[int(become)] * 3)
    os.setresuid(*[int(become)] * 3)
if landlock == "without":
    confinement._landlock = lambda *_: False
users = TaskUsers.find(folder)
user = confinement.isolate(os.getppid(), 0, users)
print("user", user.id, "counted", user.counted)
confinement.set_limits(
    data_bytes=1 << 30, file_bytes=1000, cpu_s=10, threads=5 if user.counted else None
)
os.chdir(folder)
if user.id is not None:
    folder_contents.give(folder, user.id)
confinement.confine([folder + "/in"], [folder + "/out"], user)
print("ids", os.getuid(), os.geteuid(), os.getgid(), os.getegid())

def attempt(name, do):
    try:
        print(name, "got", do())
    except OSError as error:
        print(name, "refused")

attempt("key", lambda: open(key).read())
attempt("given", lambda: open("in/given").read())
attempt("change given", lambda: open("in/given", "w"))
attempt("result", lambda: open("out/result", "w").write("ok"))
attempt("state", lambda: open("state/kept", "a").write("more") if landlock == "without" else "-")
attempt("root again", lambda: os.setresuid(0, 0, 0))
done, made = threading.Event(), 1
for _ in range(20):
    try:
        threading.Thread(target=done.wait).start()
    except RuntimeError:
        break
    made += 1
done.set()
print("threads", made)
"""


def break_out(folder: Path, *, landlock: bool = True, user: int | None = None) -> dict[str, str]:
    """What native code in a confined process sees and can do, by what it tried."""
    owner = user or os.geteuid()
    (folder / "task").mkdir()
    for name in ("in", "out", "state"):
        (folder / "task" / name).mkdir()
    (folder / "task" / "in" / "given").write_text("data")
    (folder / "task" / "state" / "kept").write_text("some ")
    (folder / "key").write_text("secret")
    (folder / "key").chmod(0o600)
    folder.chmod(0o700)
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user)
    arguments = [
        str(folder / "task"),
        str(folder / "key"),
        "with" if landlock else "without",
        str(user or ""),
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BREAKOUT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert (done.stderr, done.returncode) == ("", 0), owner
    return dict(
        line.rsplit(" ", 1) if line.endswith("refused") else line.split(" ", 1)
        for line in done.stdout.splitlines()
    )


@as_root
@pytest.mark.parametrize("landlock", [True, False])
def test_a_task_of_root_is_nobody(tmp_path: Path, landlock: bool) -> None:
    """It has its folder, and neither the proplet's key nor more threads than it may, also where the kernel has no Landlock."""
    found = break_out(tmp_path, landlock=landlock)
    number = int(found["user"].split()[0])
    assert number >= TaskUsers.find(str(tmp_path)).first > 0
    assert found["ids"] == " ".join([str(number)] * 4)
    assert found["key"] == "refused"
    assert found["given"] == "got data"
    assert found["change given"] == "refused"
    assert found["result"] == "got 2"
    assert found["root again"] == "refused"
    assert found["threads"] == "5"
    if not landlock:
        assert found["state"] == "got 4"


@as_root
def test_a_task_of_another_user_has_its_threads_counted() -> None:
    """By a user namespace, where the kernel lets anybody have one."""
    with tempfile.TemporaryDirectory() as folder:  # that of the test is root's alone
        found = break_out(Path(folder), user=4242)
    if found["user"] == "None counted False":
        pytest.skip("this kernel gives no user namespaces, or counts all of a user's threads")
    assert found["user"] == "None counted True"
    assert found["threads"] == "5"
    assert found["key"] == "refused"  # by Landlock
    assert found["given"] == "got data"
    assert found["result"] == "got 2"


def capabilities(*missing: str) -> int:
    return sum(1 << bit for name, bit in task_users.NEEDED.items() if name not in missing)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"os.geteuid": lambda: 1000}, "the proplet is not root"),
        (
            {"_capabilities": lambda: capabilities("kill", "chown")},
            "the proplet lacks the capabilities chown, kill",
        ),
        (
            {"_is_mapped": lambda _: False},
            "its user namespace has neither the ids from 1879048192 nor those from 61184",
        ),
        ({"os.fchown": None}, "cannot be given to another user (Operation not permitted)"),
    ],
)
def test_why_tasks_are_the_proplets_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Mapping[str, object], why: str
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    held: dict[str, object] = {
        "os.geteuid": lambda: 0,
        "_capabilities": capabilities,
        "_is_mapped": lambda _: True,
        "os.fchown": lambda *_: None,
    }
    for name, value in {**held, **change}.items():
        monkeypatch.setattr(f"propeller.wasm.task_users.{name}", value or refuse)
    assert why in TaskUsers.find(str(tmp_path)).why
    assert list(tmp_path.iterdir()) == []


def test_in_a_container_with_few_ids_the_lower_range_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "os.geteuid": lambda: 0,
        "_capabilities": capabilities,
        "_is_mapped": lambda users: users[0] < 65536,
        "os.fchown": lambda *_: None,
    }.items():
        monkeypatch.setattr(f"propeller.wasm.task_users.{name}", value)
    users = TaskUsers.find(str(tmp_path))
    assert (users.first, users.why) == (61184, "")
    ids = [users.user_id(pid) for pid in range(1, 4000)]
    assert len(set(ids)) == len(ids)
    assert all(one is not None and 61184 <= one < 65280 for one in ids)


CROWD = """[__import__('_thread').start_new_thread(__import__('time').sleep, (30,)) for _ in range(8)] and str(
__import__('time').sleep(30))"""
"""Nine threads with the one that it is done in."""


async def test_a_task_with_too_many_threads_is_ended(sandbox: Sandbox) -> None:
    """The kernel lets it have one more than it may, so that it is seen."""
    with pytest.raises(HostCallError, match=r"^threads: over the limit of 8 threads$"):
        async with sandbox.call(HostCall("builtins", "eval", CROWD, {}, Limits(threads=8))):
            raise AssertionError("it went on")


async def test_the_kernel_refuses_more_threads(sandbox: Sandbox) -> None:
    if "threads" not in await sandbox.protections():
        pytest.skip("this kernel does not count the threads of each task by themselves")
    code = CROWD.replace("range(8)", "range(99)")
    with pytest.raises(HostCallError, match=r"can't start new thread|over the limit of 8 threads"):
        async with sandbox.call(HostCall("builtins", "eval", code, {}, Limits(threads=8))):
            raise AssertionError("it went on")


@as_root
async def test_what_a_task_of_root_leaves_is_roots(sandbox: Sandbox) -> None:
    code = "str(open('out/a', 'w').write('x')) + str(__import__('os').getuid())"
    async with sandbox.call(HostCall("builtins", "eval", code, {}, Limits())) as answer:
        assert answer.value.startswith("1")
        assert int(answer.value[1:]) > 60000
        assert (answer.out / "a").stat().st_uid == 0
        assert answer.out.stat().st_uid == 0


@as_root
async def test_what_is_kept_of_a_task_of_root_is_roots(sandbox: Sandbox, tmp_path: Path) -> None:
    """Its state, and large files; a large file that it was given stays the proplet's, and nobody else may write to it."""
    given = tmp_path / "sandbox" / "given"
    given.write_bytes(b"x" * 1000)
    given.chmod(0o600)
    run = ProgramRun(
        "a",
        await add(sandbox, echo()),
        env={"COPY": "1", "KEEP": "kept", "REPLY": "done"},
        files={"model.safetensors": given},
        state=StateFolder(None, tmp_path / "sandbox" / "state"),
        large_files=tmp_path / "sandbox" / "large",
        large_bytes=10,
    )
    outcome = await sandbox.run(run)
    assert (outcome.error, outcome.stdout) == (None, b"done")
    (moved,) = outcome.large_files.values()
    kept = [tmp_path / "sandbox" / "state", *(tmp_path / "sandbox" / "state").iterdir()]
    assert len(kept) > 1
    assert {path.stat().st_uid for path in (moved, given, *kept)} == {0}
    assert {path.stat().st_gid for path in (moved, given, *kept)} == {0}
    assert given.stat().st_mode & 0o222 == 0


def test_protections_name_the_user() -> None:
    assert "own_user" not in confinement.available_protections()
    assert {"own_user", "threads"} <= set(confinement.available_protections(TaskUsers(first=5, count=1)))
    assert "threads" in confinement.available_protections(TaskUsers(namespaces=True))
