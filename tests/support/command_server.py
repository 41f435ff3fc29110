"""A process that has imported what the ``propeller`` command needs, and is forked for each command that a test runs to its end.

A command is as much a process of its own as one that Python is started for, with its own arguments, environment, folder and streams;
its imports, most of its time, are paid once for all tests of a worker. So are those of the services of a stack: a stack that is started
here has this process for the one that its services are forked from.
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
from collections.abc import Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import IO, Any, NoReturn

_IMPORTED = (
    "propeller.cli.tables",
    "propeller.proplet.main",
    "propeller.sdk",
    "propeller.stack.preload",
    "rich.table",
    "structlog",
    "typer.main",
)

_MAX_REQUEST = 1024 * 1024

_FORK_SERVER = "from multiprocessing.forkserver import main; "
"""What the code begins with that ``multiprocessing`` starts an interpreter with."""

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
        session: bool = False,
    ) -> None:
        """Start ``propeller`` with these arguments, in a folder: the test's own, if none is given; in a session of its own, if asked to."""
        self.returncode: int | None = None
        request = json.dumps(
            {"arguments": arguments, "env": env, "folder": str(folder or Path.cwd()), "session": session}
        )
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
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(str(folder))
    if arguments[:1] == ["up"]:
        _offer_fork_server()
    sys.argv = ["propeller", *arguments]
    runpy.run_module("propeller", run_name="__main__", alter_sys=True)
    raise SystemExit


def _offer_fork_server() -> None:
    """Let the first fork server of this process (``multiprocessing``'s) be a fork of what it is now, instead of a new interpreter.

    It is forked here, while there is neither a thread nor an event loop, and waits until it is wanted or this process has ended.
    Proplets are forked from it too, which else are new interpreters, so that they are small.
    """
    from propeller.stack.supervisor import ProcessStarter

    ProcessStarter._run_interpreter = ProcessStarter._fork  # type: ignore[method-assign] # noqa: SLF001
    ours, its = socket.socketpair()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as the supervisor starts it
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_fork_server(its)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    its.close()
    start_interpreter = util.spawnv_passfds

    def start(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        code = str(args[-1])
        if ours.fileno() == -1 or not code.startswith(_FORK_SERVER):
            return start_interpreter(path, args, passfds)
        with ours:
            socket.send_fds(ours, [json.dumps([code, list(passfds)]).encode()], list(passfds))
        return pid

    util.spawnv_passfds = start


def _be_fork_server(asked: socket.socket) -> NoReturn:
    """Fork services, once it is asked to; their passwords are hashed cheaply."""
    import argon2

    message, received, _flags, _address = socket.recv_fds(asked, _MAX_REQUEST, 8)
    asked.close()
    if not message:
        os._exit(0)
    code, descriptors = json.loads(message)
    own = dict(zip(descriptors, received, strict=True))
    cheap = functools.partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    argon2.PasswordHasher = cheap  # type: ignore[misc, assignment]

    def main(*given: Any, **named: Any) -> None:
        """``forkserver.main`` with what the descriptors are here."""
        listener, alive, *others = given
        if named.get("authkey_r") is not None:
            named["authkey_r"] = own[named["authkey_r"]]
        forkserver.main(own[listener], own[alive], *others, **named)

    try:
        exec(code.removeprefix(_FORK_SERVER), {"main": main})  # what an interpreter would be started with
    finally:
        os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
