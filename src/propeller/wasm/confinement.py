"""What the kernel lets a task's process do, so that a hole in the runtime is not a hole in the device.

Linux only: no new privileges, limits (setrlimit), Landlock (files and TCP), and a seccomp filter that refuses what no
Wasm program needs (network, other processes, debugging, mounting, …). Each is skipped where the kernel lacks it;
``available_protections`` tells which there are. Runs in the forked child before any foreign code, while it has one thread.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys

from propeller.process.parent_death import die_with_parent

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)

# Refused system calls: name → number on x86_64, number on aarch64 (None: does not exist there).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setrlimit": (160, 164),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56, 234, 302), "aarch64": (1, 0xC00000B7, 220, 131, 261)}
"""Column in the table above, the audit architecture, and the numbers of ``clone``, ``tgkill`` and ``prlimit64``."""

_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AND_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld [k], jeq, jset, ret
_EPERM, _ENOSYS = 1, 38


def available_protections() -> tuple[str, ...]:
    """The protections that this kernel offers, by name."""
    if sys.platform != "linux":
        return ("rlimits",)
    found = ["rlimits", "no_new_privs"]
    if _libc.syscall(_LANDLOCK_CREATE, None, 0, 1) >= 1:
        found.append("landlock")
    if platform.machine() in _ARCHITECTURES and _libc.prctl(21, 0, 0, 0, 0) >= 0:
        found.append("seccomp")
    return tuple(found)


def isolate(parent: int, nice: int) -> None:
    """Tie this process to its parent, and make it the first to go when the device is short of anything."""
    os.setsid()
    if sys.platform == "linux":
        if not die_with_parent(parent):
            os._exit(1)
        with contextlib.suppress(OSError):
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(fd, b"1000")
            os.close(fd)
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # from here on /proc/self is not this user's
    with contextlib.suppress(OSError):
        os.nice(nice)


def set_limits(*, data_bytes: int, file_bytes: int, cpu_s: int) -> None:
    """Set the process's limits.

    ``RLIMIT_DATA`` counts writable private memory, linear memories included, but not the gigabytes of address space
    that the runtime reserves around each; ``RLIMIT_AS`` would.
    """
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 256),
    ):
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))


def confine(readable: list[str], writable: list[str]) -> None:
    """Give up, for good, everything but the folders named and the open descriptors."""
    if sys.platform != "linux":
        return
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _landlock(readable, writable)
    _seccomp()


def launch_runtime() -> None:
    """Bound this process, then become an external runtime; exits with 127 if it cannot be run.

    The arguments of the process are a folder for ``sys.path``, the parent's id, the niceness, the three limits of
    ``set_limits``, the runtime and its arguments: see ``external.py``, which runs this with ``python -I -S -c``.
    """
    parent, nice, data_bytes, file_bytes, cpu_s = map(int, sys.argv[2:7])
    runtime, *arguments = sys.argv[7:]
    isolate(parent, nice)
    set_limits(data_bytes=data_bytes, file_bytes=file_bytes, cpu_s=cpu_s)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the proplet was started in the background
    try:
        os.execv(runtime, [runtime, *arguments])  # noqa: S606 - the operator's own program
    except OSError as error:
        sys.stderr.write(f"{runtime}: {error.strerror}\n")
        sys.exit(127)


def _landlock(readable: list[str], writable: list[str]) -> None:
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return
    # Access bits by ABI: 13 at first, then REFER, TRUNCATE, (ABI 4 adds TCP), IOCTL_DEV.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0
    scoped = 0b11 if abi >= 6 else 0  # abstract sockets, signals
    size = {True: 24, False: 16 if abi >= 4 else 8}[abi >= 6]
    attribute = struct.pack("=QQQ", files, network, scoped)[:size]
    rules = _libc.syscall(_LANDLOCK_CREATE, attribute, size, 0)
    if rules < 0:
        return
    read = 0b1100  # READ_FILE, READ_DIR
    for folders, access in ((readable, read), (writable, files & ~1)):  # bit 0: execute
        for folder in folders:
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            _libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", access, fd), 0)
            os.close(fd)
    _libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _seccomp() -> None:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return
    column, audit, *checked = known
    numbers = [row[column] for row in _REFUSED.values() if row[column] is not None]
    code = _filter_code([number for number in numbers if number is not None], audit, *checked)
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filters, 0, 0)


def _filter_code(refused: list[int], audit: int, clone: int, tgkill: int, prlimit: int) -> bytes:
    """The filter: refuse the list, new processes (not threads), signals to other processes, and setting limits."""

    def step(op: int, value: int, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("HBBI", op, true, false, value)

    refuse, allow = step(_RETURN, _REFUSE | _EPERM), step(_RETURN, _ALLOW)
    steps = [step(_LOAD, 4), step(_EQUAL, audit, 1, 0), refuse, step(_LOAD, 0)]
    steps += [step(_EQUAL, _CLONE3, 0, 1), step(_RETURN, _REFUSE | _ENOSYS)]  # libc then falls back to clone
    steps += [step(_EQUAL, clone, 0, 4), step(_LOAD, 16), step(_AND_SET, _CLONE_THREAD, 0, 1), allow, refuse]
    steps += [step(_EQUAL, tgkill, 0, 4), step(_LOAD, 16), step(_EQUAL, os.getpid(), 0, 1), allow, refuse]
    steps += [
        step(_EQUAL, prlimit, 0, 6),
        step(_LOAD, 32),
        step(_EQUAL, 0, 0, 3),
    ]  # the new limit: a null pointer
    steps += [step(_LOAD, 36), step(_EQUAL, 0, 0, 1), allow, refuse]
    for number in refused:
        steps += [step(_EQUAL, number, 0, 1), refuse]
    if audit == _ARCHITECTURES["x86_64"][1]:
        steps += [step(0x35, 0x40000000, 0, 1), refuse]  # jge: the x32 numbers
    steps.append(allow)
    return b"".join(steps)
