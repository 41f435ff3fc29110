"""Native programs that mean harm: each is refused what it tries, or ended with the limit's name, and the next task runs as if nothing had been."""

import asyncio
import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.native.interpreter import Interpreter
from propeller.wasm import system_calls
from propeller.wasm.program_run import MIB, Limits, RunOutcome, StateFolder
from propeller.wasm.sandbox import Sandbox
from support.guests import children
from support.native_programs import python_that_all_may_read, run_native, training
from support.net import eventually

pytestmark = pytest.mark.timeout(120)

GOOD = training("return Update(model, 1)")

TOLD = """
def tell(what, attack):
    try:
        print("GOT", what, repr(attack())[:200])
    except BaseException as error:
        print("refused", what, type(error).__name__, error)
"""
"""In an attacking program: does something that must not work, and says how it went."""


async def attempt(
    sandbox: Sandbox,
    body: str,
    *,
    before: str = "",
    state: StateFolder | None = None,
    **limits: float | None,
) -> tuple[RunOutcome, list[str]]:
    """Run a hostile program, then a good one, which must work; gives the first one's outcome and what it said."""
    said: list[str] = []
    asked = Limits(**{"wall_time_s": 30, **limits})  # type: ignore[arg-type]
    script = training(f"{body}\nreturn Update(model, 1)", TOLD + before)
    env = {"EXPERIMENT_ID": "e"} if state else {}
    outcome = await run_native(
        sandbox, script, limits=asked, on_stderr=said.append, id_="hostile", state=state, env=env
    )
    after = await run_native(sandbox, GOOD, id_="good")
    assert after.error is None, after
    return outcome, said


def refused(outcome: RunOutcome, said: list[str], *whats: str) -> None:
    """Check that each attack was tried, and refused, and that the program could end as it liked."""
    assert outcome.error is None, (outcome, said)
    assert not [line for line in said if line.startswith("GOT")], said
    for what in whats:
        assert any(line.startswith(f"refused {what} ") for line in said), said


def named(outcome: RunOutcome, limit: str) -> None:
    """Check that the outcome names its limit."""
    assert outcome.limit == limit, outcome
    assert outcome.error is not None
    assert outcome.error.startswith(f"{limit}: over the limit of "), outcome


# Files ------------------------------------------------------------------------------------------------------


async def test_reading_what_is_the_devices(sandbox: Sandbox) -> None:
    outcome, said = await attempt(
        sandbox,
        """
for name in ("/etc/shadow", "/etc/passwd", "/root/.bashrc", "/etc/hostname", "/var/log/dpkg.log", "/dev/mem", "/proc/1/environ"):
    tell(name, lambda: open(name, "rb").read())
for name in ("/", "/root", "/home", "/etc", "/tmp", "/proc"):
    tell(name, lambda: os.listdir(name))
""",
        before="import os",
    )
    refused(outcome, said, "/etc/shadow", "/proc/1/environ", "/", "/tmp", "/proc")


async def test_reading_the_proplets_state_and_keys(sandbox: Sandbox, tmp_path: Path) -> None:
    """By the names that it can find out: its folder's, and what is above it."""
    key = tmp_path / "device.json"
    key.write_text("secret")
    outcome, said = await attempt(
        sandbox,
        f"""
tell("key", lambda: open({str(key)!r}).read())
tell("programs", lambda: os.listdir({str(tmp_path / "sandbox" / "programs")!r}))
tell("above", lambda: os.listdir("../.."))
tell("task", lambda: open("task.json").read())
tell("folder", lambda: os.listdir("."))
tell("replaced", lambda: open("task.json", "w").write("{{}}"))
""",
        before="import os",
    )
    refused(outcome, said, "key", "programs", "above", "task", "folder", "replaced")


async def test_reading_the_folders_of_other_tasks(sandbox: Sandbox, tmp_path: Path) -> None:
    other = asyncio.create_task(
        run_native(
            sandbox,
            training(
                "import time\nopen('out/secret', 'w').write('x')\ntime.sleep(60)\nreturn Update(model, 1)"
            ),
            id_="other",
        )
    )
    tasks = tmp_path / "sandbox" / "tasks"
    await eventually(lambda: bool(list(tasks.glob("*/*/out/secret"))), 20, "the other task has begun")
    [secret] = tasks.glob("*/*/out/secret")
    outcome, said = await attempt(
        sandbox,
        f"""
tell("out", lambda: open({str(secret)!r}).read())
tell("in", lambda: open({str(secret.parents[1] / "in" / "dataset.json")!r}).read())
tell("written", lambda: open({str(secret.parents[1] / "out" / "mine")!r}, "w"))
tell("listed", lambda: os.listdir({str(tasks)!r}))
""",
        before="import os",
    )
    refused(outcome, said, "out", "in", "written", "listed")
    await sandbox.kill("other")
    assert (await other).error == "stopped before completion"


async def test_the_environment_of_the_parent(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPLET_CLIENT_KEY", "very-secret")
    outcome, said = await attempt(
        sandbox,
        """
tell("parent", lambda: open(f"/proc/{os.getppid()}/environ").read())
tell("self", lambda: open("/proc/self/environ").read())
tell("memory", lambda: open("/proc/self/mem", "rb"))
tell("maps", lambda: open(f"/proc/{os.getppid()}/maps").read())
tell("descriptors", lambda: os.listdir(f"/proc/{os.getppid()}/fd"))
print("environment", sorted(os.environ))
print("input", sys.stdin.read() if sys.stdin else None)
for number in range(3, 64):
    try:
        os.fstat(number)
        print("GOT descriptor", number)
    except OSError:
        pass
""",
        before="import os, sys",
    )
    refused(outcome, said, "parent", "self", "memory", "maps", "descriptors")
    assert not any("very-secret" in line or "PROPLET_CLIENT_KEY" in line for line in said), said
    assert any(line.startswith("input") and line.strip() in {"input", "input None"} for line in said), said


async def test_links_out_of_its_folders(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for link in ("os.symlink('/etc/shadow', 'out/update.safetensors')", "os.symlink('/tmp', 'out/folder')"):
        outcome, _ = await attempt(sandbox, link, before="import os")
        assert outcome.error is not None
        assert outcome.error.endswith("not a regular file; write files and folders only"), outcome
    outcome, said = await attempt(
        sandbox,
        f"""
os.symlink({str(tmp_path)!r}, "out/up")
tell("followed", lambda: open("out/up/secret").read())
tell("linked", lambda: os.link({str(tmp_path / "secret")!r}, "out/hard"))
os.unlink("out/up")
""",
        before="import os",
    )
    refused(outcome, said, "followed", "linked")


async def test_a_link_in_the_device_state(sandbox: Sandbox, tmp_path: Path) -> None:
    state = StateFolder(None, tmp_path / "sandbox" / "left")
    outcome, _ = await attempt(sandbox, "os.symlink('/etc', 'state/x')", before="import os", state=state)
    assert outcome.error == "/state/x: not a regular file; write files and folders only"
    assert not (tmp_path / "sandbox" / "left").exists()


async def test_a_link_in_the_place_of_the_temporary_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    """What the proplet removes after the task is not what the link names."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    outcome, _ = await attempt(
        sandbox,
        f"os.rmdir('out/.tmp')\nos.symlink({str(precious)!r}, 'out/.tmp')",
        before="import os",
    )
    assert outcome.error == "/out/.tmp: not a regular file; write files and folders only"
    assert (precious / "file").read_text() == "kept"


async def test_writing_into_the_interpreters_packages(sandbox: Sandbox) -> None:
    import numpy as np

    file = Path(np.__file__)
    before = file.read_bytes()
    outcome, said = await attempt(
        sandbox,
        """
file = np.__file__
packages = os.path.dirname(os.path.dirname(file))
tell("changed", lambda: open(file, "a").write("evil"))
tell("added", lambda: open(os.path.join(packages, "evil.pth"), "w").write("import evil"))
tell("removed", lambda: os.unlink(file))
tell("renamed", lambda: os.rename(file, file + ".old"))
tell("mode", lambda: os.chmod(file, 0o777))
tell("cached", lambda: os.mkdir(os.path.join(packages, "__pycache__2")))
tell("python", lambda: open(sys.executable, "ab"))
tell("package", lambda: open(propeller.__file__, "a").write("evil"))
tell("input", lambda: open("in/model.json", "a").write("evil"))
""",
        before="import os, sys\nimport numpy as np\nimport propeller",
    )
    refused(
        outcome,
        said,
        "changed",
        "added",
        "removed",
        "renamed",
        "mode",
        "cached",
        "python",
        "package",
        "input",
    )
    assert file.read_bytes() == before


# Network and other processes --------------------------------------------------------------------------------


async def test_the_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome, said = await attempt(
            sandbox,
            f"""
tell("tcp", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
tell("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port})))
tell("tcp6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
tell("unix", lambda: socket.socket(socket.AF_UNIX).connect("/run/docker.sock"))
tell("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0service"))
tell("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
tell("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
tell("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
tell("pair", lambda: socket.socketpair())
tell("server", lambda: socket.create_server(("127.0.0.1", 0)))
tell("name", lambda: socket.getaddrinfo("example.com", 80))
tell("http", lambda: urllib.request.urlopen("http://127.0.0.1:{port}", timeout=2))
""",
            before="import socket\nimport urllib.request",
        )
    refused(
        outcome, said, "tcp", "udp", "tcp6", "unix", "abstract", "raw", "netlink", "pair", "server", "http"
    )


async def test_other_processes(sandbox: Sandbox) -> None:
    """No new process, and so no shell and no daemon."""
    outcome, said = await attempt(
        sandbox,
        """
tell("fork", lambda: os.fork() or os._exit(0))
tell("vfork", lambda: subprocess.run(["/bin/true"]))
tell("shell", lambda: subprocess.check_output("id", shell=True))
tell("spawn", lambda: os.posix_spawn("/bin/sh", ["sh"], {}))
tell("exec", lambda: os.execv("/bin/sh", ["sh", "-c", "true"]))
tell("exec-self", lambda: os.execv(sys.executable, [sys.executable]))
tell("pool", lambda: multiprocessing.Pool(1))
tell("pty", lambda: pty.fork())
print("system", ctypes.CDLL(None).system(b"touch out/by-shell"))
print("daemon", ctypes.CDLL(None).daemon(1, 1))
""",
        before="import ctypes, multiprocessing, os, pty, subprocess, sys",
    )
    refused(outcome, said, "fork", "vfork", "shell", "spawn", "exec", "exec-self", "pool", "pty")
    assert "daemon -1" in said
    assert "by-shell" not in outcome.out_files


async def test_a_fork_bomb(sandbox: Sandbox) -> None:
    """Every way that a program may try, again and again, until it gives up."""
    outcome, said = await attempt(
        sandbox,
        """
made = 0
for _ in range(2000):
    for way in (libc.fork, libc.vfork, lambda: libc.syscall(56, 17, 0, 0, 0, 0), lambda: libc.syscall(435, 0, 0)):
        made += way() >= 0
print("made", made)
""",
        before="import ctypes\nlibc = ctypes.CDLL(None)",
    )
    assert outcome.error is None, (outcome, said)
    assert said == ["made 0"]


async def test_a_bomb_of_threads(sandbox: Sandbox) -> None:
    outcome, _ = await attempt(
        sandbox,
        """
while True:
    try:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        time.sleep(0.01)
""",
        before="import threading, time",
        threads=20,
    )
    named(outcome, "threads")


async def test_harm_to_the_parent(sandbox: Sandbox) -> None:
    outcome, said = await attempt(
        sandbox,
        """
parent, libc = os.getppid(), ctypes.CDLL(None, use_errno=True)
for name, done in (
    ("kill", lambda: os.kill(parent, signal.SIGKILL)),
    ("stop", lambda: os.kill(parent, signal.SIGSTOP)),
    ("group", lambda: os.killpg(os.getpgid(parent), signal.SIGKILL)),
    ("all", lambda: os.kill(-1, signal.SIGKILL)),
    ("handle", lambda: os.pidfd_open(parent)),
    ("priority", lambda: os.setpriority(os.PRIO_PROCESS, parent, 19)),
    ("limits", lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (1, 1))),
    ("own limits", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
    ("affinity", lambda: os.sched_setaffinity(parent, {0})),
    ("session", lambda: os.setsid()),
    ("root", lambda: os.setuid(0)),
):
    tell(name, done)
for name, number in (("attach", 16), ("seize", 0x4206)):
    print(name, libc.ptrace(number, parent, 0, 0))
print("tgkill", libc.tgkill(parent, parent, 9), libc.syscall(234, parent, parent, 9))
print("memory", libc.process_vm_readv(parent, None, 0, None, 0, 0), libc.process_vm_writev(parent, None, 0, None, 0, 0))
""",
        before="import ctypes, os, resource, signal",
    )
    refused(
        outcome, said, "kill", "stop", "group", "all", "handle", "limits", "own limits", "session", "root"
    )
    for line in ("attach -1", "seize -1", "tgkill -1 -1", "memory -1 -1"):
        assert line in said
    assert children(os.getpid())


async def test_system_calls_by_number(sandbox: Sandbox) -> None:
    """Of all numbers that there are, those alone work that are on the list."""
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    listed = {
        row[column]
        for row in (
            *system_calls.ALLOWED.values(),
            *system_calls.NATIVE.values(),
            *system_calls.LOOKED_AT.values(),
        )
    }
    # Those of probes end whoever calls them, which they are not meant for, with SIGILL; filters are not asked.
    others = sorted(set(range(600)) - listed - {335, 336})
    outcome, said = await attempt(
        sandbox,
        f"""
libc = ctypes.CDLL(None, use_errno=True)
for number in {others!r}:
    ctypes.set_errno(0)
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38):
        print("GOT", number, ctypes.get_errno())
print("tried")
""",
        before="import ctypes",
    )
    refused(outcome, said)
    assert said[-1] == "tried"


async def test_calls_that_open_a_way_out(sandbox: Sandbox) -> None:
    calls = {
        "bpf": 321, "io_uring_setup": 425, "mount": 165, "keyctl": 250, "add_key": 248, "unshare": 272, "setns": 308, "userfaultfd": 323,
        "perf_event_open": 298, "ptrace": 101, "memfd_create": 319, "open_by_handle_at": 304, "kexec_load": 246, "init_module": 175,
        "pivot_root": 155, "chroot": 161, "execve": 59, "execveat": 322, "socket": 41, "shmget": 29, "mq_open": 240, "seccomp": 317,
        "setuid": 105, "capset": 126, "clone3": 435, "landlock_create_ruleset": 444, "pkey_alloc": 330, "personality": 135,
    }  # fmt: skip
    assert not set(calls) & {*system_calls.ALLOWED, *system_calls.NATIVE, *system_calls.LOOKED_AT}
    if platform.machine() != "x86_64":
        return  # the test above has these by its own numbers
    outcome, said = await attempt(
        sandbox,
        f"""
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {calls!r}.items():
    print(name, libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
""",
        before="import ctypes",
    )
    assert outcome.error is None, outcome
    assert said == [f"{name} -1 38" for name in calls]


# Resources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bomb",
    [
        "held = []\nwhile True: held.append(bytearray(8 << 20))",
        "held = []\nwhile True: held.append(np.ones(1 << 20))",
        "np.ones(1 << 40)",
        "held = [mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(100)]",
    ],
)
async def test_a_bomb_of_memory(sandbox: Sandbox, bomb: str) -> None:
    outcome, said = await attempt(
        sandbox, bomb, before="import mmap\nimport numpy as np", memory_bytes=128 * MIB
    )
    assert outcome.metrics["memory_peak_bytes"] < 512 * MIB
    if "mmap" in bomb:  # says no more than that there is none
        assert outcome.error is not None
        assert "Cannot allocate memory" in said[-1]
    named(outcome, "memory_bytes")


async def test_memory_that_no_limit_counts(sandbox: Sandbox) -> None:
    """Shared memory of no file, of files that have no name, of System V."""
    outcome, said = await attempt(
        sandbox,
        """
tell("shared", lambda: mmap.mmap(-1, 1 << 30))
tell("memfd", lambda: os.memfd_create("x"))
tell("shm", lambda: open("/dev/shm/x", "w"))
tell("posix", lambda: multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20))
tell("huge", lambda: mmap.mmap(-1, 1 << 21, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000))
with open("out/file", "wb+") as file:
    file.truncate(4096)
    mmap.mmap(file.fileno(), 4096)[:1] = b"x"
""",
        before="import mmap, multiprocessing.shared_memory, os",
    )
    refused(outcome, said, "shared", "memfd", "shm", "posix", "huge")
    assert outcome.out_files["file"][:1] == b"x"


@pytest.mark.parametrize("folder", ["out", "tempfile.gettempdir()"])
async def test_a_bomb_on_the_disk(sandbox: Sandbox, folder: str) -> None:
    where = repr(folder) if folder == "out" else folder
    bomb = f"""
number = 0
while True:
    number += 1
    with open(os.path.join({where}, str(number)), "wb") as file:
        file.write(bytes(1 << 20))
"""
    outcome, _ = await attempt(sandbox, bomb, before="import os, tempfile", out_bytes=4 * MIB, out_files=1000)
    named(outcome, "out_bytes")


async def test_a_bomb_of_files(sandbox: Sandbox) -> None:
    bomb = "for number in range(10**9): open(os.path.join(tempfile.gettempdir(), str(number)), 'w').close()"
    outcome, _ = await attempt(sandbox, bomb, before="import os, tempfile")
    named(outcome, "out_files")


async def test_a_file_without_a_name(sandbox: Sandbox) -> None:
    outcome, _ = await attempt(
        sandbox,
        """
files = [tempfile.TemporaryFile() for _ in range(20)]
while True:
    for file in files:
        file.write(bytes(1 << 18))
        file.flush()
    time.sleep(0.02)
""",
        before="import tempfile, time",
        out_bytes=8 * MIB,
    )
    named(outcome, "out_bytes")


async def test_a_long_file(sandbox: Sandbox) -> None:
    """Longer than all may be together: the kernel refuses that one."""
    outcome, said = await attempt(sandbox, "open('out/file', 'wb').truncate(1 << 40)", out_bytes=MIB)
    assert outcome.error is not None, said
    assert not outcome.out_files


async def test_an_endless_loop(sandbox: Sandbox) -> None:
    began = time.monotonic()
    outcome, _ = await attempt(sandbox, "while True: pass", wall_time_s=2)
    named(outcome, "wall_time_s")
    assert outcome.metrics["total_ms"] < 15_000
    assert time.monotonic() - began < 60


async def test_signals_that_are_ignored(sandbox: Sandbox) -> None:
    outcome, _ = await attempt(
        sandbox,
        """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def again():
    while True:
        time.sleep(0.1)
threading.Thread(target=again).start()
again()
""",
        before="import signal, threading, time",
        wall_time_s=3,
    )
    named(outcome, "wall_time_s")


@pytest.mark.parametrize(
    ("flood", "limit"),
    [
        ("while True: os.write(1, bytes(1 << 16))", "stdout_bytes"),
        ("while True: print('x' * 10_000)", "stderr_bytes"),
        ("while True: os.write(2, bytes(1 << 16))", "stderr_bytes"),
    ],
)
async def test_a_flood_of_output(sandbox: Sandbox, flood: str, limit: str) -> None:
    outcome, _ = await attempt(sandbox, flood, before="import os", state=None, **{limit: 1_000_000})
    named(outcome, limit)
    assert len(outcome.stdout) <= 1_000_000


async def test_too_many_descriptors(sandbox: Sandbox) -> None:
    outcome, _ = await attempt(
        sandbox,
        "held = []\nwhile True:\n    try:\n        held.append(os.pipe())\n    except OSError:\n        time.sleep(0.01)",
        before="import os, time",
        descriptors=64,
    )
    named(outcome, "descriptors")


# Before the program begins, and after it has ended ----------------------------------------------------------


async def test_what_is_done_while_it_is_loaded(sandbox: Sandbox) -> None:
    """The process has given everything up before the script is read."""
    outcome, said = await attempt(
        sandbox,
        "pass",
        before='import os, socket\ntell("shadow", lambda: open("/etc/shadow"))\ntell("socket", lambda: socket.socket())',
    )
    refused(outcome, said, "shadow", "socket")


async def test_a_process_that_does_not_end_leaves_nothing(sandbox: Sandbox) -> None:
    """Threads that are not daemons, handlers at exit: all of it is gone with the process, and the next task has a new one."""
    outcome, _ = await attempt(
        sandbox,
        """
threading.Thread(target=time.sleep, args=(600,)).start()
atexit.register(time.sleep, 600)
""",
        before="import atexit, threading, time",
        wall_time_s=4,
    )
    named(outcome, "wall_time_s")
    await eventually(
        lambda: not [one for one in children(sandbox.template_pid) if _is_python(one)],
        5,
        "no process is left",
    )


def _is_python(pid: int) -> bool:
    try:
        return "propeller.native.guest" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


async def test_a_result_of_anothers_making(sandbox: Sandbox) -> None:
    """It may end itself as it likes; what it wrote is all that there is, and the proplet looks at that."""
    outcome, _ = await attempt(sandbox, "os.write(1, b'{}')\nos._exit(0)", before="import os")
    assert (outcome.error, outcome.stdout) == (None, b"{}")
    outcome, _ = await attempt(sandbox, "ctypes.string_at(0)", before="import ctypes")
    assert outcome.error == "the task's process ended by SIGSEGV"


async def test_a_task_cannot_set_the_interpreter_up(sandbox: Sandbox, tmp_path: Path) -> None:
    """Variables that a task brings are the program's, and were not there when the interpreter began."""
    evil = tmp_path / "evil.py"
    evil.write_text("print('GOT evil')")
    said: list[str] = []
    outcome = await run_native(
        sandbox,
        training("import os\nprint(os.environ['PYTHONPATH'])\nreturn Update(model, 1)"),
        env={"PYTHONPATH": str(tmp_path), "LD_PRELOAD": "/tmp/x.so", "PYTHONSTARTUP": str(evil)},
        on_stderr=said.append,
    )
    assert outcome.error is None
    assert said == [str(tmp_path)]


# As another user --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_python() -> Iterator[Path]:
    with python_that_all_may_read() as found:
        yield found


async def test_tasks_of_root_are_other_users(open_python: Path, tmp_path: Path) -> None:
    """Where the proplet is root, also what Landlock does not forbid is not theirs."""
    async with Sandbox(tmp_path / "sandbox", native=Interpreter.find(open_python)) as sandbox:
        own = not await sandbox.shared_user()
        outcome, said = await attempt(
            sandbox,
            """
print("user", os.getuid(), os.getgid(), os.getgroups())
tell("root", lambda: os.setresuid(0, 0, 0))
tell("key", lambda: open("task.json").read())
tell("shadow", lambda: open("/etc/shadow").read())
tell("memory", lambda: mmap.mmap(-1, 1 << 20))
""",
            before="import mmap, os",
        )
        refused(outcome, said, "root", "key", "shadow", "memory")
        if own:
            assert not said[0].startswith("user 0 ")
        outcome, _ = await attempt(
            sandbox,
            "while True: open(os.path.join(tempfile.mkdtemp(), 'x'), 'w')",
            before="import os, tempfile",
        )
        named(outcome, "out_files")


def test_the_list_names_no_call_twice() -> None:
    """A number that is another call's would allow that one."""
    numbers = [row[0] for row in system_calls.NATIVE.values()]
    assert len(set(numbers)) == len(numbers)
    assert not {row[0] for row in system_calls.ALLOWED.values()} & set(numbers)
