"""What the kernel refuses to a task's process, tried from native code in one: a hole in the runtime is not a hole in the device."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from propeller.wasm import confinement, system_calls

ATTEMPTS = """
import os, signal, socket, sys, threading
from propeller.wasm import confinement

mine, out = sys.argv[1:]
ctypes = __import__("ctypes")
libc = ctypes.CDLL(None, use_errno=True)
inherited = os.open("/dev/null", os.O_RDONLY)
confinement.isolate(os.getppid(), 5)
confinement.set_limits(data_bytes=1 << 28, file_bytes=1000, cpu_s=10)
confinement.confine([mine], [out])

def call(*arguments):
    if libc.syscall(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def refused(name, attempt):
    try:
        attempt()
    except (OSError, ValueError):
        print(name, "refused")
    else:
        print(name, "ALLOWED")

print("group its own" if os.getpgid(0) == os.getpid() else "group of its parent")
print("session of its parent" if os.getsid(0) == os.getsid(os.getppid()) else "session its own")
refused("read", lambda: open("/etc/passwd"))
refused("list", lambda: os.listdir("/"))
refused("write in", lambda: open(mine + "/new", "w"))
refused("write outside", lambda: open("/tmp/new-file-of-a-guest", "w"))
refused("socket", lambda: socket.socket())
refused("unix socket", lambda: socket.socket(socket.AF_UNIX))
refused("fork", os.fork)
refused("exec", lambda: os.execv(sys.executable, [sys.executable]))
refused("kill", lambda: os.kill(os.getppid(), 0))
refused("other memory", lambda: open(f"/proc/{os.getppid()}/mem"))
refused("limits", lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_NOFILE, (64, 64)))
if libc.ptrace(16, os.getppid(), 0, 0) != 0:
    print("ptrace refused")
refused("large file", lambda: open(out + "/large", "wb", buffering=0).write(b"x" * 1000) and open(out + "/large", "ab", buffering=0).write(b"y"))
open(mine + "/given").read()
open(out + "/result", "w").write("ok")
thread = threading.Thread(target=lambda: print("thread works"))
thread.start()
thread.join()
refused("own descriptors", lambda: os.listdir("/proc/self/fd"))
refused("signal to a thread of another", lambda: call(234 if os.uname().machine == "x86_64" else 131, os.getppid(), os.getppid(), 0))
refused("be hidden from the template", lambda: call(157 if os.uname().machine == "x86_64" else 167, 4, 0, 0, 0, 0))
print("nice", os.getpriority(os.PRIO_PROCESS, 0))
"""


@pytest.mark.skipif(
    "landlock" not in confinement.available_protections()
    or "seccomp" not in confinement.available_protections(),
    reason="needs both",
)
def test_confined(tmp_path: Path) -> None:
    mine, out = tmp_path / "in", tmp_path / "out"
    mine.mkdir()
    out.mkdir()
    (mine / "given").write_text("data")
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, mine, out], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert "ALLOWED" not in done.stdout, done.stdout
    assert done.stdout.count("refused") == 16
    assert "thread works" in done.stdout
    assert "group its own\nsession of its parent\n" in done.stdout
    assert f"nice {os.nice(0) + 5}" in done.stdout
    assert (out / "result").read_text() == "ok"


EVERY_CALL = """
import ctypes, json, os, sys
from propeller.wasm import confinement

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
skipped = set(map(int, sys.argv[1].split(",")))
confinement.confine([], [])
answers = {}
for number in [*range(600), 0x40000000, 0x40000000 + 59]:
    if number not in skipped:
        ctypes.set_errno(0)
        answers[number] = (libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0), ctypes.get_errno())
print(json.dumps(answers))
"""

ATTACKS = (
    "fork", "vfork", "clone3", "execve", "execveat", "socket", "socketpair", "connect", "bind", "kill", "tkill",
    "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "ptrace", "process_vm_readv", "process_vm_writev", "mount", "umount2",
    "fsopen", "move_mount", "pivot_root", "chroot", "unshare", "setns", "open_by_handle_at", "bpf", "perf_event_open",
    "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "init_module",
    "finit_module", "kexec_load", "reboot", "setuid", "setgid", "setresuid", "setrlimit", "capset", "seccomp", "memfd_create",
    "memfd_secret", "fallocate", "fanotify_init", "inotify_init1", "shmget", "msgget", "semget", "mq_open", "setpriority",
    "sched_setaffinity", "sched_setscheduler", "personality", "vmsplice", "splice", "name_to_handle_at", "quotactl", "swapon",
    "acct", "syslog", "settimeofday", "clock_settime", "ioperm", "iopl", "modify_ldt", "process_madvise", "mlock", "chmod", "chown",
)  # fmt: skip
"""What code that broke out of the runtime would begin with."""

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def numbers(machine: str) -> dict[str, int]:
    """System calls by name, from the kernel's headers."""
    if not HEADERS[machine].exists():
        pytest.skip(f"there is no {HEADERS[machine]} (on Debian: apt-get install linux-libc-dev)")
    found = re.findall(r"#define __NR(3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    given = {name: int(number) for wide, name, number in found if not wide}
    # Those that 32 and 64 bits share have their names at the end.
    wide = {name: int(number) for wide, name, number in found if wide}
    return wide | given


@pytest.mark.skipif("seccomp" not in confinement.available_protections(), reason="needs seccomp")
def test_every_system_call_but_those_listed_is_refused() -> None:
    """Each number is tried in a confined process."""
    column = ("x86_64", "aarch64").index(platform.machine())
    listed = {row[column] for row in (*system_calls.ALLOWED.values(), *system_calls.LOOKED_AT.values())}
    tried = {str(number) for number in listed if number is not None}
    if platform.machine() == "x86_64":
        tried |= {"335", "336"}  # the kernel's own, of probes; whoever else calls them is ended
    done = subprocess.run(
        [sys.executable, "-c", EVERY_CALL, ",".join(tried)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    answers = json.loads(done.stdout)
    assert len(answers) == 602 - len(tried)
    assert {tuple(answer) for answer in answers.values()} == {(-1, 38)}  # ENOSYS
    known = numbers(platform.machine())
    assert [name for name in ATTACKS if name in known and known[name] in listed] == []


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    known = numbers(machine)
    column = ("x86_64", "aarch64").index(machine)
    generic = {"fstat": 80, "newfstatat": 79} if machine == "aarch64" else {}
    for name, row in {**system_calls.ALLOWED, **system_calls.LOOKED_AT}.items():
        assert row[column] == generic.get(name, known.get(name)), name
