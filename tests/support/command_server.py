"""A process that has imported what the ``propeller`` command needs, and is forked for each command that a test runs to its end.

A command is as much a process of its own as one that Python is started for, with its own arguments, environment, folder and streams;
its imports, most of its time, are paid once for all tests of a worker.
"""

import atexit
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NoReturn

_IMPORTED = (
    "propeller.cli.tables",
    "propeller.sdk",
    "propeller.stack.preload",
    "rich.table",
    "structlog",
    "typer.main",
)

_MAX_REQUEST = 1024 * 1024

Stream = IO[str] | IO[bytes] | int


class Command:
    """A command that runs, with what tests use of ``subprocess.Popen``."""

    def __init__(
        self,
        arguments: list[str],
        env: dict[str, str],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.DEVNULL,
        stderr: Stream = subprocess.DEVNULL,
        folder: Path | None = None,
    ) -> None:
        """Start ``propeller`` with these arguments, in a folder: the test's own, if none is given."""
        self.returncode: int | None = None
        request = json.dumps({"arguments": arguments, "env": env, "folder": str(folder or Path.cwd())})
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(str(_address()))
        with Path(os.devnull).open("r+b") as nothing:
            streams = [
                nothing.fileno()
                if one == subprocess.DEVNULL
                else one
                if isinstance(one, int)
                else one.fileno()
                for one in (stdin, stdout, stderr)
            ]
            socket.send_fds(self._server, [request.encode()], streams)
        self._server.shutdown(socket.SHUT_WR)
        self._answers = self._server.makefile("r")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it ends.

        Raises:
            subprocess.TimeoutExpired: it runs still, after that many seconds.
        """
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("propeller", timeout or 0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._server.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def run(
    arguments: list[str], env: dict[str, str], timeout: float, stdin: str = "", folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run ``propeller`` with these arguments in a folder, as ``subprocess.run`` would.

    Raises:
        subprocess.TimeoutExpired: it was killed after that many seconds.
    """
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin)
        given.seek(0)
        command = Command(arguments, env, stdin=given, stdout=out, stderr=err, folder=folder)
        try:
            code = command.wait(timeout)
        except subprocess.TimeoutExpired:
            command.kill()
            command.wait()
            raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(arguments, code, *texts)


@functools.cache
def _address() -> Path:
    """The socket of this worker's server, which ends with the worker."""
    folder = Path(tempfile.mkdtemp(prefix="propeller-"))
    path = folder / "commands"
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(_end, server, folder)
    assert server.stdout.readline() == b"ready\n"
    return path


def _end(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    server.communicate()
    (folder / "commands").unlink(missing_ok=True)
    folder.rmdir()


def _serve(path: str) -> None:
    """Fork for each request, until nobody holds the other end of standard input."""
    for name in _IMPORTED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    """Run one command in a child, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _flags, _address = socket.recv_fds(connection, _MAX_REQUEST, 3)
    while part := connection.recv(_MAX_REQUEST):
        request += part
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(json.loads(request), streams)
    connection.sendall(f"{pid}\n".encode())
    _pid, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, object], streams: list[int]) -> NoReturn:
    arguments, env, folder = request["arguments"], request["env"], request["folder"]
    assert isinstance(arguments, list)
    assert isinstance(env, dict)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(str(folder))
    sys.argv = ["propeller", *arguments]
    runpy.run_module("propeller", run_name="__main__", alter_sys=True)
    raise SystemExit


if __name__ == "__main__":
    _serve(sys.argv[1])
