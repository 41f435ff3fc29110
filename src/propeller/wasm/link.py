"""The proplet's side of the template process: starts it, restarts it, and runs confined processes through it."""

import asyncio
import contextlib
import errno
import importlib.metadata
import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.wasm.pipe import Pipe, Sink
from propeller.wasm.report import figure, read_report

_CODE = "import sys; sys.path[:0] = sys.argv[2:]; from propeller.wasm.template import main; main()"
_RESULT_BYTES = 64 * 1024
_RETRY_S = 0.002


class LinkError(Exception):
    """The sandbox's own process is gone or cannot do its work."""


@dataclass(frozen=True)
class Ended:
    """How a confined process ended: its exit status (negative: the signal), who ended it and why, what it used."""

    status: int
    reason: str | None
    cpu_s: float
    memory_peak_bytes: int
    result: bytes


class Process:
    """A confined process that was asked for; ``ended`` tells how it ended."""

    def __init__(self, link: "Link", number: int, pipes: list[Pipe], result: bytearray) -> None:
        self._link, self.number, self._pipes, self._result = link, number, pipes, result
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """End it at once; without a template it has ended already."""
        with contextlib.suppress(LinkError):
            self._link.send({"kill": self.number})

    async def ended(self) -> Ended:
        """Wait for its end and for all it has written.

        One that has said how it ended has nothing more to do: it is killed, and not waited for, as giving back its
        memory takes a while.

        Raises:
            LinkError: the template process ended, and this one with it, or could not fork.
        """
        *written, result = self._pipes
        try:
            await asyncio.wait([self.report, result.ended], return_when=asyncio.FIRST_COMPLETED)
            used = None if self.report.done() else _used(self._result)
            if used is not None:
                self.kill()
                for pipe in written:
                    pipe.drain()
                return Ended(0, None, *used, bytes(self._result))
            report = await asyncio.shield(self.report)
            await asyncio.wait([pipe.ended for pipe in self._pipes], timeout=5)
        finally:
            for pipe in self._pipes:
                pipe.close()
        return Ended(result=bytes(self._result), **report)


def _used(result: bytes | bytearray) -> tuple[float, int] | None:
    """Seconds of CPU and bytes of memory that a process says it used; None if it did not come to say so."""
    report = read_report(result)
    seconds, size = figure(report, "cpu_s"), figure(report, "memory_peak_bytes")
    return None if seconds is None or size is None else (seconds, int(size))


class Link:
    """The template process and the socket to it. An ended one is replaced; its tasks fail."""

    def __init__(self, nice: int) -> None:
        self._nice = nice
        self._numbers = itertools.count(1)
        self._running: dict[int, Process] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._text = b""
        self._hello: asyncio.Future[dict[str, Any]] | None = None
        self._closed = False
        self.runtime = ""
        """The version of the runtime that the template loaded."""

    @property
    def pid(self) -> int:
        """The template's process id."""
        if self._process is None:
            raise LinkError("sandbox: not started")
        return self._process.pid

    async def hello(self) -> dict[str, Any]:
        """What the template said about itself when it started (``protections``); ``runtime`` is set then.

        Raises:
            LinkError: it does not start.
        """
        self._control()
        if self._hello is None:
            raise LinkError("sandbox: not started")
        return await asyncio.wait_for(asyncio.shield(self._hello), 30)

    def open(self) -> None:
        """Start the template.

        Raises:
            LinkError: it cannot be started.
        """
        folders = [str(Path(__file__).parents[2])]
        for name in ("wasmtime", "numpy"):
            package = importlib.util.find_spec(name)
            if package is None or package.origin is None:
                raise LinkError(f"sandbox: the {name} package is not installed")
            folders.append(str(Path(package.origin).parents[1]))
        self.runtime = importlib.metadata.version("wasmtime")  # here, as it would cost the template 4 MB
        # Isolated, without site: nothing of the environment, and 3 MB less.
        command = [sys.executable, "-I", "-S", "-c", _CODE, str(self._nice), *folders]
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise LinkError(f"sandbox: cannot start {sys.executable}: {error.strerror}") from None
        ours.setblocking(False)
        self._socket, self._text = ours, b""
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        loop.add_reader(ours.fileno(), self._receive)

    async def close(self) -> None:
        """End the template and every task."""
        self._closed = True
        await self._drop()

    async def start(self, request: dict[str, Any], stdout: Sink, stderr: Sink) -> Process:
        """Ask for a confined process; the sinks take its standard output and error.

        Raises:
            LinkError: the template is gone.
            OSError: there are no more descriptors.
        """
        result = bytearray()
        pipes: list[Pipe] = []
        try:
            for sink in (stdout, stderr, Sink(_RESULT_BYTES, result.extend, lambda: None)):
                pipes.append(Pipe(sink))  # noqa: PERF401 - those made are closed if one cannot be
            process = Process(self, next(self._numbers), pipes, result)
            message = {"id": process.number, **request}
            while not self.send(message, [pipe.writer for pipe in pipes]):  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(_RETRY_S)
        except BaseException:
            for pipe in pipes:
                pipe.close()
            raise
        finally:
            for pipe in pipes:
                os.close(pipe.writer)
        self._running[process.number] = process
        return process

    def send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> bool:
        """Write one request; False if the template has too many unread ones (one without descriptors is sent later).

        Raises:
            LinkError: the template is gone.
        """
        line = json.dumps(message).encode() + b"\n"
        try:
            socket.send_fds(self._control(), [line], descriptors or [])
        except OSError as error:
            if error.errno in {
                errno.EAGAIN,
                errno.ETOOMANYREFS,
            }:  # a small line is written whole, or not at all
                if descriptors is None:
                    asyncio.get_running_loop().call_later(_RETRY_S, self.send, message)
                return False
            raise LinkError(f"sandbox: its process does not answer: {error.strerror}") from None
        return True

    def _control(self) -> socket.socket:
        if self._socket is None and not self._closed:
            self.open()
        if self._socket is None:
            raise LinkError("sandbox: closed")
        return self._socket

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            process = self._running.pop(message.pop("id", 0), None)
            if process and "failed" in message:
                process.report.set_exception(LinkError(f"sandbox: {message['failed']}"))
            elif process:
                process.report.set_result(message)
            elif "protections" in message and self._hello:
                self._hello.set_result(message)

    def _lost(self) -> None:
        """The template ended though nobody asked it to."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        worked = self._hello is not None and self._hello.done()
        self._release()
        if worked and not self._closed:
            self.open()

    async def _drop(self) -> None:
        process = self._process
        self._release()
        if process is not None:
            try:
                await asyncio.to_thread(process.wait, 5)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    def _release(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(LinkError("sandbox: its process ended while it started"))
            self._hello.exception()
        for process in self._running.values():
            process.report.set_exception(
                LinkError("sandbox: its process ended unexpectedly, and the task with it")
            )
            process.report.exception()  # no one may be waiting for it any more
        self._running.clear()
