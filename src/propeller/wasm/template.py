"""The template process: it imports the runtime once and forks a fresh process for each task, of a program that ran last ahead of it.

Started by ``template_client.py`` with one end of a socket as descriptor 0 (see ``messages.py`` for what goes over it). It has one
thread and never makes an Engine, so that forking it is safe. It ends, and every task with it, when the socket does. It
alone waits for the tasks, so a process id that it signals is never someone else's.
"""

import array
import contextlib
import gc
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from propeller.wasm import confinement, folder_contents
from propeller.wasm.messages import (
    BoundedFolder,
    CompiledProgram,
    KillTask,
    Reply,
    StartTask,
    TaskEnded,
    TaskNotStarted,
    TemplateReady,
    decode_request,
    encode,
)
from propeller.wasm.task_users import TaskUsers

_SEARCH_EVERY_S = 0.05
"""How often ``/out`` and ``/state`` of running tasks are searched; only while there are any."""


_SPARE_AFTER_S = 0.01
"""How long after the end of a task a process is forked for the next one: what follows that end goes first."""

_SPARE_LIFE_S = 60.0
"""How long such a process waits for a task, in seconds; then it gives back its memory."""


READY = b"ready"
"""What a process says that has loaded a program ahead of its task."""


@dataclass(frozen=True)
class TaskWork:
    """What the processes of tasks do: ``worker.py`` has it for Wasm, ``native/template.py`` for native programs.

    Attributes:
        main: does what a task file says; is given that, its pipes, and this process's id, the niceness and users of tasks.
        wait: loads a program, then waits for a task that runs it over a socket; None: no process is forked ahead of its task.
        load: imports what a task needs; whether this was the first time. None: there is nothing to import.
    """

    main: Callable[[str, list[int], int, int, TaskUsers], NoReturn]
    wait: Callable[[socket.socket, CompiledProgram, int, int, TaskUsers], NoReturn] | None = None
    load: Callable[[str], bool] | None = None


@dataclass
class _Spare:
    """A process that has loaded a program and waits for a task; ``timeout`` is when it has waited long enough."""

    pid: int
    program: CompiledProgram
    control: socket.socket
    timeout: float


@dataclass
class _RunningTask:
    id: int
    pid: int
    deadline: float
    threads: int
    descriptors: int
    outputs: tuple[BoundedFolder, ...]
    program: CompiledProgram | None
    own_user: bool
    reason: str | None = None


class Template:
    """The loop: requests in, processes forked and ended, replies out."""

    def __init__(self, control: socket.socket, nice: int, users: TaskUsers, work: TaskWork) -> None:
        """``control`` is the socket to the sandbox; ``nice`` is added to the niceness of tasks, which are ``users`` and do ``work``."""
        self._control, self._work = control, work
        self._nice, self._users = nice, users
        self._tasks: dict[int, _RunningTask] = {}
        self._last_program: CompiledProgram | None = None
        self._spare: _Spare | None = None
        self._spare_due = math.inf
        self._search_due = 0.0
        self._text = b""
        self._descriptors: list[int] = []

    def serve(self) -> None:
        """Work until the sandbox's end of the socket closes.

        Raises:
            MessageError: the sandbox sent something that is no request.
        """
        wake, signalled = socket.socketpair()
        with wake, signalled:
            wake.setblocking(False)
            signalled.setblocking(False)
            signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            try:
                self._serve(wake)
            finally:
                # Those that are killed here may end when the sockets are closed, and nobody is told.
                signal.set_wakeup_fd(-1)
                self._end_spare()
                for task in self._tasks.values():
                    _kill(task.pid)

    def _serve(self, wake: socket.socket) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        protections = confinement.available_protections(self._users)
        self._send(TemplateReady(protections, self._users.first, self._users.why))
        while True:
            ready = {fd for fd, _ in poll.poll(self._pause_ms())}
            if wake.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
                self._reap()
            if self._control.fileno() in ready and not self._receive():
                return
            self._enforce_limits()
            self._look_after_spare()

    def _pause_ms(self) -> int | None:
        """Milliseconds to wait for something at most."""
        until = min([self._spare_due, *(task.deadline for task in self._tasks.values())])
        if self._spare is not None:
            until = min(until, self._spare.timeout)
        if until == math.inf and not self._tasks:
            return None
        pause_s = until - time.monotonic()
        if any(task.reason is None for task in self._tasks.values()):
            pause_s = min(pause_s, self._search_due - time.monotonic())
        return max(0, int(min(pause_s * 1000 + 1, 2**31 - 1)))

    def _receive(self) -> bool:
        """Do what has been asked; False if the socket has ended."""
        room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._control.recvmsg(65536, room)
        except ConnectionResetError:  # its other end was closed with something unread
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._descriptors.extend(received)
        if not data:
            return False
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            request = decode_request(line)
            if isinstance(request, StartTask):
                self._start(request)
            else:
                self._stop(request)
        return True

    def _start(self, request: StartTask) -> None:
        pipes, self._descriptors = self._descriptors[:3], self._descriptors[3:]
        try:
            load = self._work.load
            if request.module is not None and load is not None and load(request.module):
                # Here, once: NumPy takes 100 ms.
                self._end_spare()  # it has no NumPy
                gc.collect()
                gc.freeze()
            pid = self._use_spare(request, pipes) or self._fork(
                lambda parent: self._work.main(request.task_file, pipes, parent, self._nice, self._users)
            )
        except (OSError, ImportError) as error:  # the other tasks go on
            self._send(TaskNotStarted(request.id, f"cannot start a process: {error}"))
        else:
            deadline = time.monotonic() + request.wall_time_s
            self._tasks[pid] = _RunningTask(
                request.id,
                pid,
                deadline,
                request.threads,
                request.descriptors,
                request.outputs,
                request.program,
                request.own_user,
            )
        for fd in pipes:
            os.close(fd)
        self._spare_due = math.inf  # not while tasks begin
        self._last_program = request.program or self._last_program

    def _fork(self, work: Callable[[int], NoReturn]) -> int:
        """Fork a process that does ``work``, which is told this process's id.

        Raises:
            OSError: there are too many processes, or there is no memory.
        """
        parent = os.getpid()
        # A signal noted here and not yet handled would be handled in the child, whose descriptors are others.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = os.fork()
            if pid == 0:
                work(parent)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _look_after_spare(self) -> None:
        """Fork a process ahead of the next task when it is time to, and end one that nobody has needed."""
        now = time.monotonic()
        if self._spare is not None and now >= self._spare.timeout:
            self._end_spare()
        program, wait = self._last_program, self._work.wait
        if program is None or wait is None or now < self._spare_due:
            return
        self._spare_due = math.inf
        if self._spare is not None and self._spare.program == program:
            return
        self._end_spare()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.suppress(OSError):  # without one, the next task is forked when it comes
            begin = partial(wait, theirs, program)
            pid = self._fork(lambda parent: begin(parent, self._nice, self._users))
            self._spare = _Spare(pid, program, ours, now + _SPARE_LIFE_S)
            return
        ours.close()

    def _use_spare(self, request: StartTask, pipes: list[int]) -> int | None:
        """Give a task to the process that waits; ``None`` if there is none for its program."""
        spare = self._spare
        if spare is None or spare.program != request.program:
            return None
        try:
            if spare.control.recv(len(READY), socket.MSG_DONTWAIT):
                socket.send_fds(spare.control, [request.task_file.encode()], pipes)
                spare.control.close()
                self._spare = None
                return spare.pid
        except BlockingIOError:  # it still loads the program; then it is the next task's
            return None
        except OSError:
            pass
        self._end_spare()  # it has ended already
        return None

    def _end_spare(self) -> None:
        if self._spare is not None:
            _kill(self._spare.pid)
            self._spare.control.close()
            self._spare = None

    def _stop(self, request: KillTask) -> None:
        for task in self._tasks.values():
            if task.id == request.id:
                self._end(task, "killed")

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        is_search = now >= self._search_due
        if is_search:
            self._search_due = now + _SEARCH_EVERY_S
        for task in self._tasks.values():
            if now >= task.deadline:
                self._end(task, "wall_time_s")
                continue
            if is_search and task.reason is None and (limit := self._exceeded_limit(task)):
                self._end(task, limit)

    def _exceeded_limit(self, task: _RunningTask) -> str | None:
        if folder_contents.thread_count(task.pid) > task.threads:
            return "threads"
        if not task.outputs:
            return None
        with self._users.looking_at(task.pid) if task.own_user else contextlib.nullcontext():
            count, unlinked = folder_contents.open_files(task.pid)
        if count > task.descriptors:
            return "descriptors"
        found = (
            folder_contents.exceeded_limit(each.name, each.folder, each.max_bytes, each.max_files, unlinked)
            for each in task.outputs
        )
        return next(filter(None, found), None)

    def _end(self, task: _RunningTask, reason: str) -> None:
        task.reason = task.reason or reason
        task.deadline = float("inf")
        _kill(task.pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            task = self._tasks.pop(pid, None)
            if task is None:  # of none: it waited
                if self._spare is not None and self._spare.pid == pid:
                    self._spare.control.close()
                    self._spare = None
                continue
            if task.program is not None:
                self._spare_due = time.monotonic() + _SPARE_AFTER_S
            self._send(
                TaskEnded(
                    task.id,
                    os.waitstatus_to_exitcode(status),
                    task.reason,
                    usage.ru_utime + usage.ru_stime,
                    usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
                )
            )

    def _send(self, reply: Reply) -> None:
        with contextlib.suppress(BrokenPipeError):  # the next read ends the loop
            self._control.sendall(encode(reply))


def _kill(pid: int) -> None:
    for send in (os.killpg, os.kill):  # the group is there only once the child has made it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def main() -> None:
    """Serve the socket at descriptor 0, for Wasm; the arguments are the niceness of tasks, the folder of theirs, and how many processors they have, or 0."""
    from propeller.wasm import worker  # a template of native programs has no runtime

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confinement.use_processors(int(sys.argv[3]))
    users = TaskUsers.find(sys.argv[2])
    confinement.drop_bounding_set()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every shared page
    Template(
        socket.socket(fileno=0), int(sys.argv[1]), users, TaskWork(worker.main, worker.wait, worker.load)
    ).serve()
