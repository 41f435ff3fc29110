"""The proplet's side of the template process: starts it, restarts it, and runs confined processes through it."""

import asyncio
import contextlib
import errno
import importlib.metadata
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.errors import UnavailableError
from propeller.wasm.messages import (
    BoundedFolder,
    CompiledProgram,
    KillTask,
    MessageError,
    Request,
    StartTask,
    TaskEnded,
    TaskNotStarted,
    TaskReport,
    TemplateReady,
    decode_reply,
    decode_report,
    encode,
)
from propeller.wasm.output import OutputPipe, OutputSink
from propeller.wasm.program_run import Limits

TEMPLATE_CODE = "import sys; sys.path[:0] = sys.argv[4:]; from propeller.wasm.template import main; main()"
"""What the template's interpreter runs; its arguments are the niceness of tasks, the folder of their folders, the number of processors or 0, and the folders to import from."""

_MAX_REPORT_BYTES = 64 * 1024
_MAX_REPLY_BYTES = 64 * 1024
_START_TIMEOUT_S = 30
_PIPES_TIMEOUT_S = 5
_SEND_AGAIN_S = 0.002


class SandboxError(UnavailableError):
    """The sandbox's own process is gone or cannot do its work."""


@dataclass(frozen=True)
class ProcessEnd:
    """How a confined process ended.

    ``status`` is its exit status (negative: the signal), ``reason`` why it was ended, if it was, ``report`` what it said last;
    None: nothing that can be read.
    """

    status: int
    reason: str | None
    cpu_s: float
    memory_peak_bytes: int
    report: TaskReport | None


@dataclass(frozen=True)
class _UnsentRequest:
    """A request that waits for room in the socket; its descriptors are closed once they are sent."""

    line: bytes
    descriptors: tuple[int, ...]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class TaskProcess:
    """A confined process that was asked for; ``ended`` tells how it ended."""

    def __init__(
        self, template: "TemplateClient", number: int, pipes: list[OutputPipe], report_text: bytearray
    ) -> None:
        """``pipes`` are those of its standard output, its standard error and its report, which goes to ``report_text``."""
        self._template, self._number, self._pipes, self._report_text = template, number, pipes, report_text
        self._end: asyncio.Future[TaskEnded] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """End it at once; without a template it has ended already."""
        self._template.kill(self._number)

    async def ended(self) -> ProcessEnd:
        """Wait for its end and for all it has written.

        One that has said how it ended has nothing more to do: it is killed, and not waited for, as giving back its
        memory takes a while.

        Raises:
            SandboxError: the template process ended, and this one with it, or could not fork.
        """
        *written, reported = self._pipes
        try:
            first: list[asyncio.Future[Any]] = [self._end, reported.closed]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            report = None if self._end.done() else decode_report(self._report_text)
            if report and report.cpu_s is not None and report.memory_peak_bytes is not None:
                self.kill()
                for pipe in written:
                    pipe.drain()
                return ProcessEnd(0, None, report.cpu_s, report.memory_peak_bytes, report)
            end = await asyncio.shield(self._end)
            await asyncio.wait([pipe.closed for pipe in self._pipes], timeout=_PIPES_TIMEOUT_S)
        finally:
            for pipe in self._pipes:
                pipe.close()
        return ProcessEnd(
            end.status, end.reason, end.cpu_s, end.memory_peak_bytes, decode_report(self._report_text)
        )

    def note_end(self, end: TaskEnded) -> None:
        """The template says that it ended."""
        self._end.set_result(end)

    def note_failure(self, error: SandboxError) -> None:
        """There is no such process, or none any more."""
        self._end.set_exception(error)
        self._end.exception()  # no one may be waiting for it any more


class TemplateClient:
    """The template process and the socket to it. An ended one is replaced; its tasks fail."""

    def __init__(
        self,
        nice: int,
        tasks: Path,
        processors: int | None = None,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        nice: is added to the niceness of tasks.
        tasks: their folders are in it.
        processors: how many they may use together.
        command: what is run in the place of this Python, with these as its last three arguments; an ended one is not replaced then.
        env: its environment.
        """
        self._command, self._env = command, dict(env or {})
        self._arguments = [str(nice), str(tasks), str(processors or 0)]
        self._numbers = itertools.count(1)
        self._running: dict[int, TaskProcess] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._text = b""
        self._unsent: deque[_UnsentRequest] = deque()
        self._sending: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[TemplateReady] | None = None
        self._closed = False
        self.runtime_version = ""
        """The version of the runtime that the template loaded."""

    @property
    def pid(self) -> int:
        """The template's process id."""
        if self._process is None:
            raise SandboxError("sandbox: not started")
        return self._process.pid

    async def ready(self) -> TemplateReady:
        """What the template said about itself when it started; ``runtime_version`` is set then.

        Raises:
            SandboxError: it does not start.
        """
        self._open_if_ended()
        if self._ready is None:
            raise SandboxError("sandbox: not started")
        return await asyncio.wait_for(asyncio.shield(self._ready), _START_TIMEOUT_S)

    def open(self) -> None:
        """Start the template.

        Raises:
            SandboxError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                command = [*self._command, *self._arguments] if self._command else self._own_command()
                self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=self._env,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise SandboxError(f"sandbox: cannot start {command[0]}: {error.strerror}") from None
            except SandboxError:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket, self._text = ours, b""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._receive)

    def _own_command(self) -> list[str]:
        """What starts the template of Wasm programs, in this Python.

        Raises:
            SandboxError: a package is not installed.
        """
        folders = [str(Path(__file__).parents[2])]
        for name in ("wasmtime", "numpy", "ml_dtypes", "zstandard"):
            package = importlib.util.find_spec(name)
            if package is None or package.origin is None:
                raise SandboxError(f"sandbox: the {name} package is not installed")
            folders.append(str(Path(package.origin).parents[1]))
        self.runtime_version = importlib.metadata.version("wasmtime")  # here: it would cost the template 4 MB
        # Isolated, without site: nothing of the environment, and 3 MB less.
        command = [sys.executable, "-I", "-S", "-c", TEMPLATE_CODE, *self._arguments]
        return [*command, *dict.fromkeys(folders)]

    @property
    def is_open(self) -> bool:
        """Whether there is a template, as far as is known."""
        return self._socket is not None

    async def close(self) -> None:
        """End the template and every task."""
        self._closed = True
        process = self._process
        if process is not None and self._ready is not None and not self._ready.done():
            _kill(process)  # it has no task, and may import for long before it looks at the socket
        self._release()
        if process is not None:
            try:
                await asyncio.to_thread(process.wait, 5)
            except subprocess.TimeoutExpired:
                _kill(process)
                await asyncio.to_thread(process.wait)

    def start(
        self,
        task_file: Path,
        wall_time_s: float,
        limits: Limits,
        *,
        threads: int | None = None,
        stdout: OutputSink,
        stderr: OutputSink,
        module: str | None = None,
        outputs: tuple[BoundedFolder, ...] = (),
        program: CompiledProgram | None = None,
        own_user: bool = True,
    ) -> TaskProcess:
        """Ask for a confined process for the task in a file; the sinks take its standard output and error.

        Of ``limits`` those of threads (or ``threads`` instead) and descriptors are looked after.
        ``module`` is what it needs that takes long to import: the template does it once. ``program`` is what it runs, if it does. ``own_user``: whether it becomes a
        user of its own, where tasks do.

        Raises:
            SandboxError: there is no template.
            OSError: there are no more descriptors.
        """
        self._open_if_ended()
        report_text = bytearray()
        pipes: list[OutputPipe] = []
        try:
            for sink in (stdout, stderr, OutputSink(_MAX_REPORT_BYTES, report_text.extend, lambda: None)):
                pipes.append(OutputPipe(sink))  # noqa: PERF401 - those made are closed if one cannot be
        except OSError:
            for pipe in pipes:
                pipe.close()
                os.close(pipe.write_end)
            raise
        number = next(self._numbers)
        process = self._running[number] = TaskProcess(self, number, pipes, report_text)
        request = StartTask(
            number,
            str(task_file),
            wall_time_s,
            threads or limits.threads,
            limits.descriptors,
            module,
            outputs,
            program,
            own_user,
        )
        self._send(request, tuple(pipe.write_end for pipe in pipes))
        return process

    def kill(self, number: int) -> None:
        """End a task's process; nothing happens where it has ended already."""
        if self._socket is not None:
            self._send(KillTask(number))

    def _open_if_ended(self) -> None:
        if self._closed:
            raise SandboxError("sandbox: closed")
        if self._socket is None:
            self.open()

    def _send(self, request: Request, descriptors: tuple[int, ...] = ()) -> None:
        """Send a request as soon as the socket has room, after those that wait already."""
        self._unsent.append(_UnsentRequest(encode(request), descriptors))
        if self._sending is None:
            self._send_waiting()

    def _send_waiting(self) -> None:
        self._sending = None
        while self._unsent and self._socket is not None:
            request = self._unsent[0]
            try:
                # A small line is written whole, or not at all.
                socket.send_fds(self._socket, [request.line], request.descriptors)
            except OSError as error:
                if error.errno in {errno.EAGAIN, errno.ETOOMANYREFS}:  # the template has too many unread ones
                    self._sending = asyncio.get_running_loop().call_later(_SEND_AGAIN_S, self._send_waiting)
                return  # else its end is on the way
            self._unsent.popleft().close()

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._text = (self._text + data).split(b"\n")
        try:
            for line in lines:
                self._handle_reply(line)
            broken = len(self._text) > _MAX_REPLY_BYTES
        except MessageError:
            broken = True
        if broken or not data:
            self._replace()

    def _handle_reply(self, line: bytes) -> None:
        reply = decode_reply(line)
        if isinstance(reply, TemplateReady):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(reply)
            return
        process = self._running.pop(reply.id, None)
        if process is None:
            return
        if isinstance(reply, TaskNotStarted):
            process.note_failure(SandboxError(f"sandbox: {reply.error}"))
        else:
            process.note_end(reply)

    def _replace(self) -> None:
        """The template ended though nobody asked it to, or says what no template would."""
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
        worked = self._ready is not None and self._ready.done()
        self._release()
        if worked and not self._closed and not self._command:
            self.open()

    def _release(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        while self._unsent:
            self._unsent.popleft().close()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(SandboxError("sandbox: its process ended while it started"))
            self._ready.exception()
        for process in self._running.values():
            process.note_failure(
                SandboxError("sandbox: its process ended unexpectedly, and the task with it")
            )
        self._running.clear()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a template that has not been waited for, and what it started that is no task: its group is its own."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(process.pid, signal.SIGKILL)
