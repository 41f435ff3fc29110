"""What the kernel lets a task's process do, so that a hole in the runtime is not a hole in the device.

Linux only: limits (setrlimit), a user of its own (``task_users.py``), no capabilities and no new privileges, Landlock (files and TCP), and
a seccomp filter that allows what a runtime needs and no other system call (``system_calls.py``). Each is skipped where the kernel lacks it;
``available_protections`` tells which there are. Runs in the forked child before any foreign code, while it has one thread.
"""

import contextlib
import ctypes
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable, Iterator

from propeller.process.parent_death import die_with_parent
from propeller.wasm import system_calls
from propeller.wasm.task_users import TaskUser, TaskUsers

_PR_SET_DUMPABLE = 4
_PR_GET_SECCOMP = 21
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_MAX_CAPABILITIES = 64
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_OF_FILES = 0b110 | 1 << 14  # WRITE_FILE, READ_FILE, TRUNCATE: the bits that a rule for a file may have

_libc = ctypes.CDLL(None, use_errno=True)


def available_protections(users: TaskUsers = TaskUsers()) -> tuple[str, ...]:  # noqa: B008 - frozen
    """The protections that this kernel offers, by name; those that ``users`` are among them."""
    if sys.platform != "linux":
        return ("rlimits",)
    found = ["rlimits", "no_new_privs"]
    if _libc.syscall(_LANDLOCK_CREATE, None, 0, 1) >= 1:
        found.append("landlock")
    if system_calls.is_known() and _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0:
        found.append("seccomp")
    if users.count:
        found.append("own_user")
    if users.count or users.namespaces:
        found.append("threads")
    return tuple(found)


def isolate(parent: int, nice: int, users: TaskUsers = TaskUsers()) -> TaskUser:  # noqa: B008 - frozen
    """Tie this process to its parent, and make it the first to go when the device is short of anything.

    It leads a group of its own and stays in its parent's session: a kernel that gives each session its share of the processors
    (``autogroup``, sched(7)) weighs niceness within a session only, and would let each task have as much as the proplet.

    Returns:
        The user that it is to be, of ``users``, for ``set_limits`` and ``confine``.
    """
    os.setpgid(0, 0)
    user = TaskUser()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(fd, b"1000")
            os.close(fd)
        user = users.enter()
        if not die_with_parent(parent):
            os._exit(1)
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # from here on /proc/self is not this user's
    with contextlib.suppress(OSError):
        os.nice(nice)
    return user


def set_limits(
    *, data_bytes: int, file_bytes: int, cpu_s: int, descriptors: int = 256, threads: int | None = None
) -> None:
    """Set the process's limits; of threads only where the kernel counts this process's own (``TaskUser.counted``).

    ``RLIMIT_DATA`` counts writable private memory, linear memories included, but not the gigabytes of address space
    that the runtime reserves around each; ``RLIMIT_AS`` would.
    """
    limits = [
        (resource.RLIMIT_CORE, 1),  # none, also where a program takes them: to one, 0 is no limit
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, descriptors),
    ]
    if threads is not None:
        limits.append((resource.RLIMIT_NPROC, threads))
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))


def confine(
    readable: list[str],
    writable: list[str],
    user: TaskUser = TaskUser(),  # noqa: B008 - frozen
    *,
    native: bool = False,
) -> None:
    """Give up, for good, everything but the folders and files named and the open descriptors, as ``user``.

    ``native``: what runs then is no Wasm, so that nothing else confines it.

    Raises:
        OSError: it cannot become that user; or, with ``native``, the kernel does not confine this process.
    """
    if sys.platform != "linux":
        if native:
            raise OSError("native programs run on Linux alone")
        return
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    is_shut_in = _landlock(
        readable, writable
    )  # first: another user does not reach the folders by their names
    _become(user)
    if is_shut_in or user.id is not None:
        # No other task can look into this one; the template may, and counts what it has open and unlinked.
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    is_filtered = system_calls.set_filter(_libc, os.getpid(), native=native)
    if native and not (is_shut_in and is_filtered):
        missing = [
            name for name, has in (("Landlock", is_shut_in), ("a seccomp filter", is_filtered)) if not has
        ]
        raise OSError(
            f"this kernel does not confine a native program: there is no {' and no '.join(missing)}"
        )


def confine_template(readable: list[str], writable: list[str]) -> None:
    """Give up, for good, everything but the folders and files named, the open descriptors, and what it takes to start confined tasks.

    Raises:
        OSError: the kernel does not confine this process.
    """
    if sys.platform != "linux":
        raise OSError("native programs run on Linux alone")
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not (_landlock(readable, writable) and system_calls.set_filter(_libc, os.getpid(), template=True)):
        raise OSError("this kernel does not confine a native program")


@contextlib.contextmanager
def without_capabilities() -> Iterator[None]:
    """Have no capability in effect for the length of the block; those that this process may have it has again after it.

    Raises:
        OSError: the kernel refuses.
    """
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    if _libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("=6I", held.raw))  # effective, permitted, inheritable; twice 32 bits
    words[0] = words[3] = 0
    if _libc.capset(header, struct.pack("=6I", *words)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        if _libc.capset(header, held) != 0:
            raise OSError(ctypes.get_errno(), "capset")


def give_up_rights(user: TaskUser) -> None:
    """Be ``user``, without capabilities, for good and in every program that this process becomes.

    Raises:
        OSError: it cannot become that user.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _become(user)


def _become(user: TaskUser) -> None:
    user.become()
    _drop_capabilities()


def use_processors(count: int) -> None:
    """Let this process and those that it starts use so many of its processors together, the last ones; 0: all of them (and always where it is not Linux)."""
    if count and sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def keep_capabilities(kept: Iterable[int]) -> None:
    """Have those alone, of the ones that this process has, for good.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform != "linux":
        return
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    _libc.capget(header, held)
    effective, permitted = struct.unpack("=6I", held.raw)[:2]
    mask = sum(1 << bit for bit in kept)
    if _libc.capset(header, struct.pack("=6I", effective & mask, permitted & mask, 0, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def drop_bounding_set() -> None:
    """Have no program that is run from here on get a capability; those that this process has it keeps."""
    if sys.platform == "linux":
        for capability in range(_MAX_CAPABILITIES):
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                return  # there are no more, or it may not


def _drop_capabilities() -> None:
    """Have none any more, as root neither: files are then those that the mode lets it have."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _libc.capset(header, bytes(24))


def launch_runtime() -> None:
    """Bound this process, then become an external runtime; exits with 127 if it cannot be run.

    The arguments of the process are a folder for ``sys.path``, the parent's id, the niceness, the four limits of
    ``set_limits``, the number of processors or 0, the runtime and its arguments: see ``external.py``, which runs this with ``python -I -S -c``.
    """
    parent, nice, data_bytes, file_bytes, cpu_s, descriptors, processors = map(int, sys.argv[2:9])
    runtime, *arguments = sys.argv[9:]
    isolate(parent, nice)
    use_processors(processors)
    set_limits(data_bytes=data_bytes, file_bytes=file_bytes, cpu_s=cpu_s, descriptors=descriptors)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the proplet was started in the background
    try:
        os.execv(runtime, [runtime, *arguments])  # noqa: S606 - the operator's own program
    except OSError as error:
        sys.stderr.write(f"{runtime}: {error.strerror}\n")
        sys.exit(127)


def _landlock(readable: list[str], writable: list[str]) -> bool:
    """Whether it is on."""
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return False
    # Access bits by ABI: 13 at first, then REFER, TRUNCATE, (ABI 4 adds TCP), IOCTL_DEV.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0
    scoped = 0b11 if abi >= 6 else 0  # abstract sockets, signals
    size = {True: 24, False: 16 if abi >= 4 else 8}[abi >= 6]
    attribute = struct.pack("=QQQ", files, network, scoped)[:size]
    rules = _libc.syscall(_LANDLOCK_CREATE, attribute, size, 0)
    if rules < 0:
        return False
    read = 0b1100  # READ_FILE, READ_DIR
    for folders, access in ((readable, read), (writable, files & ~1)):  # bit 0: execute
        for folder in folders:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            allowed = access if is_folder else access & _OF_FILES
            _libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, fd), 0)
            os.close(fd)
    restricted: int = _libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
    return restricted == 0
