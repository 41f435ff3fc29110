"""What every process of a task does at its beginning: its descriptors, its limits, its folder.

Also in a device's own interpreter (``native/template.py``): standard library only.
"""

import fcntl
import os
import signal
from collections.abc import Mapping

from propeller.wasm import confinement, folder_contents
from propeller.wasm.messages import ExecTask
from propeller.wasm.program_run import Limits
from propeller.wasm.task_users import TaskUser


def use_descriptors(wanted: list[int | None], env: Mapping[str, str]) -> None:
    """Make them the descriptors from 0 on, ``None`` one that is empty, close every other one, and have ``env`` alone."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    nothing = os.open(os.devnull, os.O_RDWR)
    # Above every target, as the originals may be among them.
    raised = [fcntl.fcntl(nothing if fd is None else fd, fcntl.F_DUPFD, len(wanted)) for fd in wanted]
    for target, fd in enumerate(raised):
        os.dup2(fd, target)
    os.closerange(len(wanted), os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(env)
    os.umask(0o077)


def set_limits(
    user: TaskUser, limits: Limits, *, data_bytes: int, file_bytes: int, cpu_s: int, threads: int
) -> None:
    """Of what is also looked at from outside one more is allowed, so that it is seen who went over."""
    confinement.set_limits(
        data_bytes=data_bytes,
        file_bytes=file_bytes,
        cpu_s=cpu_s,
        descriptors=limits.descriptors + 1,
        threads=threads + 1 if user.counted else None,
    )


def enter_native(task: ExecTask, user: TaskUser) -> TaskUser:
    """Take the limits and the folder of a native program's task; the user that its process is to be."""
    limits = task.limits
    if user.id is not None and not task.own_user:
        user = TaskUser()
    set_limits(
        user,
        limits,
        data_bytes=limits.process_bytes(host_tensors=False),
        file_bytes=max(limits.out_bytes, limits.state_bytes) + 1,
        cpu_s=int(limits.wall_time_s) * (os.cpu_count() or 1) + 5,
        threads=limits.threads,
    )
    os.chdir(task.folder)
    give_folder(task.folder, user)
    return user


def give_folder(folder: str, user: TaskUser) -> None:
    """Let a task's process use its folder as the user that it is to be."""
    if user.id is not None:
        folder_contents.give(folder, user.id)
