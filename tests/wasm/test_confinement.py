"""What the kernel refuses to a task's process, tried from native code in one: a hole in the runtime is not a hole in the device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from propeller.wasm import confinement

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

def refused(name, attempt):
    try:
        attempt()
    except (OSError, ValueError):
        print(name, "refused")
    else:
        print(name, "ALLOWED")

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
print("nice", os.nice(0))
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
    assert done.stdout.count("refused") == 13
    assert "thread works" in done.stdout
    assert f"nice {os.nice(0) + 5}" in done.stdout
    assert (out / "result").read_text() == "ok"
