"""The template process: it imports the runtime once and forks a fresh process for each task.

Started by ``link.py`` with one end of a socket as descriptor 0. It has one thread and never makes an Engine, so that
forking it is safe. Requests are JSON lines; a ``run`` request brings three descriptors with it. It ends, and every task
with it, when the socket does. It alone waits for the tasks, so a process id that it signals is never someone else's.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from propeller.wasm import folder, guard, worker

_LOOK_EVERY_S = 0.05
"""How often ``/out`` of running tasks is searched; only while there are any."""


@dataclass
class _Task:
    id: int
    pid: int
    deadline: float
    out: dict[str, Any] | None
    reason: str | None = None


class Template:
    """The loop: requests in, processes forked and ended, reports out."""

    def __init__(self, control: socket.socket, nice: int) -> None:
        self._control = control
        self._nice = nice
        self._tasks: dict[int, _Task] = {}
        self._text = b""
        self._descriptors: list[int] = []
        self._wake, signal_end = socket.socketpair()
        self._signal_end = signal_end
        for end in (self._wake, signal_end):
            end.setblocking(False)
        signal.set_wakeup_fd(signal_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Work until the proplet's end of the socket closes."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self._send({"protections": guard.available()})
        try:
            while True:
                ready = {fd for fd, _ in poll.poll(self._pause())}
                if self._wake.fileno() in ready:
                    with contextlib.suppress(BlockingIOError):
                        self._wake.recv(4096)
                    self._reap()
                if self._control.fileno() in ready and not self._receive():
                    return
                self._enforce()
        finally:
            for task in self._tasks.values():
                _end(task.pid)

    def _pause(self) -> int | None:
        """Milliseconds to wait at most."""
        if not self._tasks:
            return None
        until = min(task.deadline for task in self._tasks.values()) - time.monotonic()
        if any(task.out for task in self._tasks.values()):
            until = min(until, _LOOK_EVERY_S)
        return max(0, int(min(until * 1000 + 1, 2**31 - 1)))

    def _receive(self) -> bool:
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
            request = json.loads(line)
            if "kill" in request:
                for task in self._tasks.values():
                    if task.id == request["kill"]:
                        self._kill(task, "killed")
            else:
                self._fork(request)
        return True

    def _fork(self, request: dict[str, Any]) -> None:
        pipes, self._descriptors = self._descriptors[:3], self._descriptors[3:]
        parent = os.getpid()
        try:
            if request.get("tensors") and worker.load_tensors():  # here, once: it takes 100 ms
                gc.collect()
                gc.freeze()
            # A signal noted here and not yet handled would be handled in the child, whose descriptors are others.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
        except (OSError, ImportError) as error:  # the other tasks go on
            self._send({"id": request["id"], "failed": f"cannot start a process: {error}"})
            pid = -1
        if pid == 0:
            worker.main(request["task"], pipes, parent, self._nice)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for fd in pipes:
            os.close(fd)
        if pid > 0:
            deadline = time.monotonic() + request["wall_time_s"]
            self._tasks[pid] = _Task(request["id"], pid, deadline, request.get("out"))

    def _enforce(self) -> None:
        now = time.monotonic()
        for task in self._tasks.values():
            if now >= task.deadline:
                self._kill(task, "wall_time_s")
            elif task.out and (limit := folder.excess(**task.out)):
                self._kill(task, limit)

    def _kill(self, task: _Task, reason: str) -> None:
        task.reason = task.reason or reason
        task.deadline = float("inf")
        task.out = None
        _end(task.pid)

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
                {
                    "id": task.id,
                    "status": os.waitstatus_to_exitcode(status),
                    "reason": task.reason,
                    "cpu_s": usage.ru_utime + usage.ru_stime,
                    "memory_peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
                }
            )

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the next read ends the loop
            self._control.sendall(json.dumps(message).encode() + b"\n")


def _end(pid: int) -> None:
    for send in (os.killpg, os.kill):  # the group is there only once the child made it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def main() -> None:
    """Serve the socket at descriptor 0; the first argument is the niceness of tasks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every shared page
    Template(socket.socket(fileno=0), int(sys.argv[1])).serve()
