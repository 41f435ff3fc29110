"""The seccomp filter of a task's process: the system calls that a runtime, its C library and the interpreter make; no others.

What is not listed does not exist (``ENOSYS``): C libraries then take an older call, and an attack none. Calls whose arguments
matter are looked at: new threads but no processes, signals to itself alone, limits that are read and not set.
"""

import ctypes
import platform
import struct
from typing import Final

# Name → number on x86_64, number on aarch64 (None: does not exist there).
ALLOWED: Final[dict[str, tuple[int | None, int | None]]] = {
    # Open files, pipes and sockets; there is none that opens a socket.
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "close": (3, 57),
    "close_range": (436, 436),
    "lseek": (8, 62),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "shutdown": (48, 210),
    "getsockopt": (55, 209),
    "getsockname": (51, 204),
    # Files and folders, where Landlock lets it.
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "utimensat": (280, 88),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "fadvise64": (221, 223),
    "copy_file_range": (326, 285),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "umask": (95, 166),
    # Memory.
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "msync": (26, 227),
    "mincore": (27, 232),
    "membarrier": (324, 283),
    # Threads, signals to itself, the end.
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "arch_prctl": (158, None),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132),
    # Time, randomness, and what a process is.
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "times": (100, 153),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getpriority": (140, 141),
}
LOOKED_AT: Final[dict[str, tuple[int, int]]] = {
    "clone": (56, 220),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "prctl": (157, 167),
    "ioctl": (16, 29),
}
"""Those that are allowed with some arguments."""

NATIVE: Final[dict[str, tuple[int | None, int | None]]] = {
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "sched_getscheduler": (145, 120),
    "sched_getparam": (143, 121),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
}
"""Those that native programs may make besides: they tell of the process itself."""

TEMPLATE: Final[dict[str, tuple[int | None, int | None]]] = {
    # Processes: made, waited for, ended.
    "clone": (56, 220),
    "wait4": (61, 260),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "setpgid": (109, 154),
    "socketpair": (53, 199),
    # What each gives up.
    "prctl": (157, 167),
    "capget": (125, 90),
    "capset": (126, 91),
    "unshare": (272, 97),
    "setgroups": (116, 159),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setfsgid": (123, 152),
    "setfsuid": (122, 151),
    "setpriority": (141, 140),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    # Folders that are another user's for a task's time.
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
}
"""Those that a template of native programs makes besides, to start and end tasks; each task gives them up."""

_AUDIT: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: the column above, and the audit architecture."""

_CLONE_THREAD = 0x00010000
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_PRCTLS = (15, 16, 0x53564D41)  # the name of a thread, and of memory
_IOCTLS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # is it a terminal, how much is there, do not wait, close on exec
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _AND_SET, _RETURN = (
    0x20,
    0x15,
    0x25,
    0x35,
    0x45,
    0x06,
)  # BPF: ld [k], jeq, jgt, jge, jset, ret
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # where they are in the kernel's seccomp_data
_EPERM, _ENOSYS = 1, 38
_PID_MARK = 0x7FFFFFFE
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def is_known() -> bool:
    """Whether there is a filter for this machine's architecture."""
    return platform.machine() in _AUDIT


def set_filter(libc: ctypes.CDLL, pid: int, *, native: bool = False, template: bool = False) -> bool:
    """Give up all other system calls, for good; whether the kernel took the filter. It needs ``no_new_privs``.

    Args:
        libc: the C library, with ``use_errno``.
        pid: this process, to which alone signals may be sent.
        native: for a native program: those calls more that the libraries of Python's users make, and no memory that no limit counts.
        template: for a process that starts native programs: those calls more that this takes.
    """
    if not is_known():
        return False
    is_other = native or template
    made = _filter_code(platform.machine(), native=native, template=template) if is_other else _CODE
    code = made.replace(_step(_EQUAL, _PID_MARK, 0, 1), _step(_EQUAL, pid, 0, 1))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    done: int = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)
    return done == 0


def _step(op: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("HBBI", op, true, false, value)


def _argument(index: int, half: int = 0) -> bytes:
    """Load the lower half of an argument, or the upper one."""
    return _step(_LOAD, _ARGUMENTS + 8 * index + 4 * half)


def _filter_code(machine: str, *, native: bool = False, template: bool = False) -> bytes:
    """The filter, with ``_PID_MARK`` for the process: made once, before tasks are forked."""
    column, audit = _AUDIT[machine]
    allow, refuse, absent = (_step(_RETURN, value) for value in (_ALLOW, _REFUSE | _EPERM, _REFUSE | _ENOSYS))

    def one_of(values: tuple[int, ...]) -> list[bytes]:
        return [*(step for value in values for step in (_step(_EQUAL, value, 0, 1), allow)), refuse]

    looked_at = {
        "clone": [_argument(0), _step(_AND_SET, _CLONE_THREAD, 0, 1), allow, refuse],
        "tgkill": [_argument(0), _step(_EQUAL, _PID_MARK, 0, 1), allow, refuse],
        # The new limit must be a null pointer.
        "prlimit64": [
            _argument(2), _step(_EQUAL, 0, 0, 3), _argument(2, 1), _step(_EQUAL, 0, 0, 1), allow, refuse,
        ],
        "prctl": [_argument(0), *one_of(_PRCTLS)],
        "ioctl": [_argument(1), *one_of(_IOCTLS)],
    }  # fmt: skip
    allowed = dict(ALLOWED)
    if template:
        allowed |= TEMPLATE
        looked_at = {name: code for name, code in looked_at.items() if name not in TEMPLATE}
    if native or template:
        allowed |= NATIVE
        del allowed["mmap"]
        # RLIMIT_DATA counts what is private: shared memory of no file would be without a bound.
        looked_at["mmap"] = [
            _argument(3), _step(_AND_SET, _MAP_SHARED, 0, 2), _step(_AND_SET, _MAP_ANONYMOUS, 0, 1), refuse, allow,
        ]  # fmt: skip
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, audit, 1, 0), refuse, _step(_LOAD, _NUMBER)]
    numbers = [number for row in allowed.values() if (number := row[column]) is not None]
    for first, last in _ranges(sorted(numbers)):
        steps += [_step(_AT_LEAST, first, 0, 2), _step(_ABOVE, last, 1, 0), allow]
    for name, code in looked_at.items():
        number = (LOOKED_AT.get(name) or ALLOWED[name])[column]
        if number is not None:
            steps += [_step(_EQUAL, number, 0, len(code)), *code]
    return b"".join([*steps, absent])


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Numbers in order, as ranges of those that follow each other."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        first = found.pop()[0] if found and found[-1][1] == number - 1 else number
        found.append((first, number))
    return found


_CODE: Final = _filter_code(platform.machine()) if is_known() else b""
