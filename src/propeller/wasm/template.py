"""The template process: it imports the runtime once and forks a fresh process for each task.

Started by ``template_client.py`` with one end of a socket as descriptor 0 (see ``messages.py`` for what goes over it). It has one
thread and never makes an Engine, so that forking it is safe. It ends, and every task with it, when the socket does. It
alone waits for the tasks, so a process id that it signals is never someone else's.
"""

import array
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass

from propeller.wasm import confinement, folder_contents, worker
from propeller.wasm.messages import (
    BoundedFolder,
    KillTask,
    Reply,
    StartTask,
    TaskEnded,
    TaskNotStarted,
    TemplateReady,
    decode_request,
    encode,
)

_SEARCH_EVERY_S = 0.05
"""How often ``/out`` and ``/state`` of running tasks are searched; only while there are any."""


@dataclass
class _RunningTask:
    id: int
    pid: int
    deadline: float
    outputs: tuple[BoundedFolder, ...]
    reason: str | None = None


class Template:
    """The loop: requests in, processes forked and ended, replies out."""

    def __init__(self, control: socket.socket, nice: int) -> None:
        """``control`` is the socket to the sandbox; ``nice`` is added to the niceness of tasks."""
        self._control = control
        self._nice = nice
        self._tasks: dict[int, _RunningTask] = {}
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
                for task in self._tasks.values():
                    _kill(task.pid)

    def _serve(self, wake: socket.socket) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        self._send(TemplateReady(confinement.available_protections()))
        while True:
            ready = {fd for fd, _ in poll.poll(self._pause_ms())}
            if wake.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
                self._reap()
            if self._control.fileno() in ready and not self._receive():
                return
            self._enforce_limits()

    def _pause_ms(self) -> int | None:
        """Milliseconds to wait for something at most."""
        if not self._tasks:
            return None
        pause_s = min(task.deadline for task in self._tasks.values()) - time.monotonic()
        if any(task.outputs for task in self._tasks.values()):
            pause_s = min(pause_s, _SEARCH_EVERY_S)
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
        parent = os.getpid()
        try:
            if request.module is not None and worker.load(request.module):  # here, once: NumPy takes 100 ms
                gc.collect()
                gc.freeze()
            # A signal noted here and not yet handled would be handled in the child, whose descriptors are others.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
        except (OSError, ImportError) as error:  # the other tasks go on
            self._send(TaskNotStarted(request.id, f"cannot start a process: {error}"))
            pid = -1
        if pid == 0:
            worker.main(request.task_file, pipes, parent, self._nice)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for fd in pipes:
            os.close(fd)
        if pid > 0:
            deadline = time.monotonic() + request.wall_time_s
            self._tasks[pid] = _RunningTask(request.id, pid, deadline, request.outputs)

    def _stop(self, request: KillTask) -> None:
        for task in self._tasks.values():
            if task.id == request.id:
                self._end(task, "killed")

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for task in self._tasks.values():
            if now >= task.deadline:
                self._end(task, "wall_time_s")
                continue
            for output in task.outputs:
                if limit := folder_contents.exceeded_limit(
                    output.name, output.folder, output.max_bytes, output.max_files
                ):
                    self._end(task, limit)
                    break

    def _end(self, task: _RunningTask, reason: str) -> None:
        task.reason = task.reason or reason
        task.deadline = float("inf")
        task.outputs = ()
        _kill(task.pid)

    def _reap(self) -> None:
        while self._tasks:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            task = self._tasks.pop(pid)
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
    """Serve the socket at descriptor 0; the first argument is the niceness of tasks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every shared page
    Template(socket.socket(fileno=0), int(sys.argv[1])).serve()
