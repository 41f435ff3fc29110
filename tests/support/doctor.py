"""``propeller doctor`` as a person runs it, and ways to break what it examines."""

import copy
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
from typer.testing import CliRunner

from propeller.cli.app import app
from propeller.stack.state_folder import StateFolder
from support.net import has_ended, wait_until
from support.stack import Up


@dataclass(frozen=True)
class Report:
    """What it said with ``--json``."""

    code: int
    checks: list[dict[str, str]]

    @property
    def failed(self) -> set[str]:
        """The checks that failed."""
        return {one["what"] for one in self.checks if one["status"] == "FAIL"}

    @property
    def skipped(self) -> dict[str, str]:
        """Those that were skipped, and why; not those that have nothing to ask about."""
        return {
            one["what"]: one["detail"]
            for one in self.checks
            if one["status"] == "SKIP" and one["detail"].startswith("waits for")
        }

    def line(self, what: str) -> str:
        """The lines of a check with their fixes, as one text."""
        found = [one for one in self.checks if one["what"] == what]
        return "\n".join(f"{one['status']} {one['detail']} fix: {one['fix']}" for one in found)


def examine(*arguments: str) -> Report:
    """Run the command to its end, in a thread, as a test's own event loop may run in this one."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(CliRunner().invoke, app, ["doctor", "--json", *arguments]).result()
    assert isinstance(done.exception, SystemExit | None), repr(done.exception)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    report = Report(done.exit_code, found["checks"])
    assert found["healthy"] is (report.code == 0) is (not report.failed)
    assert all(one["fix"] for one in report.checks if one["status"] == "FAIL")
    return report


def listener(url: str) -> psutil.Process:
    """The process that listens on an address."""
    port = int(url.rpartition(":")[2])
    for one in psutil.net_connections(kind="tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
            return psutil.Process(one.pid)
    raise AssertionError(f"nothing listens on {url}")


@contextmanager
def hung(process: psutil.Process) -> Iterator[None]:
    """A process that keeps its sockets and answers nothing."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def gone(up: Up, process: psutil.Process) -> Iterator[None]:
    """A process that is killed, and not started again until the end of the block."""
    with hung(psutil.Process(up.process.pid)):
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: has_ended(process.pid), what="it is killed")
        yield


@contextmanager
def published(folder: Path, stack: dict[str, Any]) -> Iterator[Path]:
    """A state folder that says a stack runs on it: this one."""
    state = StateFolder(folder)
    state.lock()
    try:
        state.write_stack(stack)
        yield folder
    finally:
        state.release()


def changed(stack: dict[str, Any], **urls: str) -> dict[str, Any]:
    """What a stack says of itself, with some services elsewhere."""
    other = copy.deepcopy(stack)
    for name, url in urls.items():
        other["services"][name]["url"] = url
    return other


@contextmanager
def answering(
    body: bytes, headers: dict[str, str] | Callable[[], dict[str, str]], status: int = 200
) -> Iterator[str]:
    """A program on a port that answers every GET with this; a function gives the headers of each answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = headers() if callable(headers) else headers
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), **given}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
