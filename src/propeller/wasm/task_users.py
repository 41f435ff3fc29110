"""Which user a task's process is to the kernel: where the proplet is root one of its own, that owns nothing else.

Elsewhere it stays the proplet's user, in a user namespace where there are any: that takes no right from it, but the kernel then counts
its threads by themselves (Linux 5.14). Root needs no namespace: a user id is a number, and those that are used here belong to nobody
(systemd's list of ranges leaves them free). The template imports this module and is small on purpose.
"""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from propeller.process.parent_death import die_with_parent

RANGES: Final = ((0x70000000, 0x0FFE0000), (61184, 4096))
"""First id and number of ids: those that nobody uses; in a container with few ids, those of systemd's transient services."""

_PIDS: Final = 1 << 22
"""No process id is larger."""

NEEDED: Final = {"chown": 0, "dac_override": 1, "fowner": 3, "kill": 5, "setgid": 6, "setuid": 7}
"""Capabilities to give away a task's files and take them back, to become another user, and to end what is one."""

_CLONE_NEWUSER: Final = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class TaskUser:
    """What one task's process is.

    Attributes:
        id: the user and group that it becomes when it is confined; None: it stays what it is.
        counted: whether the kernel counts its threads apart from those of other processes.
    """

    id: int | None = None
    counted: bool = False

    def become(self) -> None:
        """Be that user, for good.

        Raises:
            OSError: the kernel refuses.
        """
        if self.id is None:
            return
        parent = os.getppid()
        os.setgroups([])
        os.setresgid(self.id, self.id, self.id)
        os.setresuid(self.id, self.id, self.id)
        if not die_with_parent(parent):  # another user does not inherit it
            os._exit(1)


@dataclass(frozen=True)
class TaskUsers:
    """What the processes of tasks are on this device.

    Attributes:
        first, count: their user ids; 0: they are the proplet's user.
        namespaces: each has a user namespace.
        why: why they are the proplet's user, if they are.
    """

    first: int = 0
    count: int = 0
    namespaces: bool = False
    why: str = ""

    @classmethod
    def find(cls, folder: str) -> Self:
        """What can be had here, for tasks whose folders are in ``folder``; forks, so only while there is one thread."""
        why = _missing(folder)
        if not why:
            first, count = next(filter(_is_mapped, RANGES))
            return cls(first, count)
        return cls(why=why, namespaces=_namespaces_count())

    def user_id(self, pid: int) -> int | None:
        """The user id of the task in a process: nobody else's on this machine while it lives, also of another pid namespace."""
        if not self.count:
            return None
        space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - small on purpose
        return self.first + (space * _PIDS + pid) % self.count

    def enter(self) -> TaskUser:
        """Make this process what it can be before it has loaded anything; it has one thread."""
        if self.count:
            return TaskUser(self.user_id(os.getpid()), counted=True)
        return TaskUser(None, counted=self.namespaces and _libc.unshare(_CLONE_NEWUSER) == 0)

    @contextlib.contextmanager
    def looking_at(self, pid: int) -> Iterator[None]:
        """Look at files as the task in a process does, so that its descriptors can be seen; containers' root may not otherwise."""
        user = self.user_id(pid)
        if user is None:
            yield
            return
        group, owner = os.getegid(), os.geteuid()
        _libc.setfsgid(user)
        _libc.setfsuid(user)
        try:
            yield
        finally:
            _libc.setfsuid(owner)
            _libc.setfsgid(group)


def _missing(folder: str) -> str:
    """Why tasks cannot be users of their own, or nothing."""
    if sys.platform != "linux":
        return "that is done on Linux alone"
    if os.geteuid() != 0:
        return "the proplet is not root"
    lacking = [name for name, bit in NEEDED.items() if not _capabilities() >> bit & 1]
    if lacking:
        return f"the proplet lacks the capabilities {', '.join(lacking)}"
    users = next(filter(_is_mapped, RANGES), None)
    if users is None:
        return f"its user namespace has neither the ids from {RANGES[0][0]} nor those from {RANGES[1][0]}"
    try:
        name = f"{folder}/.{os.getpid()}"
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchown(file, users[0], users[0])
        finally:
            os.close(file)
            os.unlink(name)  # noqa: PTH108
    except OSError as error:
        return f"files in {folder} cannot be given to another user ({error.strerror})"
    return ""


def _capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return next((int(line[7:], 16) for line in file if line.startswith("CapEff:")), 0)


def _is_mapped(users: tuple[int, int]) -> bool:
    """Whether the ids of a range are there, as users and as groups."""
    first, count = users
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:  # noqa: PTH123
            ranges = [(int(line.split()[0]), int(line.split()[2])) for line in file]
        if not any(begin <= first and first + count <= begin + size for begin, size in ranges):
            return False
    return True


def _namespaces_count() -> bool:
    """Whether a process can have a user namespace in which its threads are counted by themselves, tried in one."""
    if sys.platform != "linux":
        return False
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if _libc.unshare(_CLONE_NEWUSER) == 0:
                resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
                status = 0 if _can_fork() and not _can_fork() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _can_fork() -> bool:
    """Whether there may be one more process; the one that is made ends when it is waited for, with its parent."""
    try:
        if os.fork() == 0:
            os._exit(0)
    except OSError:
        return False
    return True
