"""The proplet's side of the template process: starts it, restarts it, and runs confined processes through it."""

import asyncio
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CODE = "import sys; sys.path[:0] = sys.argv[2:]; from propeller.wasm.template import main; main()"
_RESULT_BYTES = 64 * 1024
_BUFFER = 256 * 1024


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


class Pipe:
    """Reads one pipe to its end without blocking; calls ``on_data`` with what comes, ``over`` once past ``limit``.

    What comes after that is read and dropped, so that the writer is never blocked by us.
    """

    def __init__(self, limit: int, on_data: Callable[[bytes], None], over: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._room, self._on_data, self._over = limit, on_data, over
        self._fd, self.writer = os.pipe()
        os.set_blocking(self._fd, False)
        self.ended = self._loop.create_future()
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        if len(data) > self._room >= 0:
            data, exceeded = data[: self._room], True
        else:
            exceeded = False
        if self._room >= 0:
            self._room -= len(data)
            if data:
                self._on_data(data)
        if exceeded:
            self._room = -1
            self._over()

    def close(self) -> None:
        """Stop reading."""
        if not self.ended.done():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set_result(None)


class Process:
    """A confined process that was asked for; ``ended`` tells how it ended."""

    def __init__(self, link: "Link", number: int, pipes: list[Pipe], result: bytearray) -> None:
        self._link, self.number, self._pipes, self._result = link, number, pipes, result
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """End it at once."""
        self._link.send({"kill": self.number})

    async def ended(self) -> Ended:
        """Wait for its end and for all it has written.

        Raises:
            LinkError: the template process ended, and this one with it, or could not fork.
        """
        try:
            report = await asyncio.shield(self.report)
            await asyncio.wait([pipe.ended for pipe in self._pipes], timeout=5)
        finally:
            for pipe in self._pipes:
                pipe.close()
        return Ended(result=bytes(self._result), **report)


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

    @property
    def pid(self) -> int:
        """The template's process id."""
        if self._process is None:
            raise LinkError("sandbox: not started")
        return self._process.pid

    async def hello(self) -> dict[str, Any]:
        """What the template said about itself when it started (``wasmtime``, ``protections``).

        Raises:
            LinkError: it does not start.
        """
        if self._hello is None:
            raise LinkError("sandbox: not started")
        return await asyncio.wait_for(asyncio.shield(self._hello), 30)

    def open(self) -> None:
        """Start the template."""
        ours, theirs = socket.socketpair()
        runtime = importlib.util.find_spec("wasmtime")
        if runtime is None or runtime.origin is None:
            raise LinkError("sandbox: the wasmtime package is not installed")
        folders = [str(Path(__file__).parents[2]), str(Path(runtime.origin).parents[1])]
        # Isolated, without site: nothing of the environment, and 3 MB less.
        command = [sys.executable, "-I", "-S", "-c", _CODE, str(self._nice), *folders]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        ours.setblocking(False)
        self._socket, self._text = ours, b""
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        loop.add_reader(ours.fileno(), self._receive)

    async def close(self) -> None:
        """End the template and every task."""
        self._closed = True
        await self._drop()

    def start(self, request: dict[str, Any], pipes: list[Pipe]) -> Process:
        """Ask for a confined process; ``pipes`` are its standard output and error.

        Raises:
            LinkError: the template is gone.
        """
        result = bytearray()
        last = Pipe(_RESULT_BYTES, result.extend, lambda: None)
        process = Process(self, next(self._numbers), [*pipes, last], result)
        writers = [pipe.writer for pipe in (*pipes, last)]
        try:
            self.send({"id": process.number, **request}, writers)
        except LinkError:
            for pipe in (*pipes, last):
                pipe.close()
            raise
        finally:
            for fd in writers:
                os.close(fd)
        self._running[process.number] = process
        return process

    def send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Write one request; they are far smaller than the socket's buffer, and the template always reads.

        Raises:
            LinkError: the template is gone or does not read.
        """
        line = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._control(), [line], descriptors or [])
        except OSError as error:
            raise LinkError(f"sandbox: its process does not answer: {error.strerror}") from None
        if sent != len(line):
            os.kill(self.pid, signal.SIGKILL)
            raise LinkError("sandbox: its process does not read; it is being replaced")

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
            elif "wasmtime" in message and self._hello:
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
        self._running.clear()
