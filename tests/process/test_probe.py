"""The health check's targets, each when it works and when it does not."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from propeller.process import probe
from support.net import free_port


@contextmanager
def listener(greeting: bytes = b"") -> Iterator[int]:
    """Accepts one connection, says something, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


@contextmanager
def web(status: int) -> Iterator[int]:
    """Answers every GET with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 1), (503, 1)])
def test_http(status: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with web(status) as port:
        assert probe.main([f"http://127.0.0.1:{port}/health"]) == code
    said = capsys.readouterr().out
    assert said == ("" if code == 0 else f"http://127.0.0.1:{port}/health: answers with {status}\n")


def test_tcp() -> None:
    with listener() as port:
        assert probe.main([f"tcp://127.0.0.1:{port}"]) == 0


@pytest.mark.parametrize(("greeting", "code"), [(b"INFO {}\r\n", 0), (b"220 hi\r\n", 1), (b"", 1)])
def test_nats(greeting: bytes, code: int) -> None:
    with listener(greeting) as port:
        assert probe.main([f"nats://127.0.0.1:{port}"]) == code


def test_a_process_that_hangs_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe.main([f"http://127.0.0.1:{port}/health"]) == 1
        assert probe.main([f"nats://127.0.0.1:{port}"]) == 1


@pytest.mark.parametrize("kind", ["http", "tcp", "nats"])
def test_nobody_listens(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{kind}://127.0.0.1:{free_port()}/health"
    assert probe.main([target]) == 1
    assert f"{target}: " in capsys.readouterr().out


def test_a_file_holds_a_time_to_come(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    target = f"file:{file}"
    assert probe.main([target]) == 1
    for text, code in (
        (f"{time.time() + 60:.3f}\n", 0),
        (f"{time.time() - 1:.3f}\n", 1),
        ("", 1),
        ("soon", 1),
    ):
        file.write_text(text)
        assert probe.main([target]) == code


def test_every_target_must_work_and_there_must_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(str(time.time() + 60))
    assert probe.main([f"file:{good}", f"file:{bad}"]) == 1
    assert str(good) not in capsys.readouterr().out
    assert probe.main([]) == 1
    assert probe.main(["ftp://x"]) == 1
    assert "write one of http:…, tcp:…, nats:…, file:…" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["http://127.0.0.1:x/", "tcp://127.0.0.1", "nats://", "file:"])
def test_what_is_no_address_is_a_failure_and_no_stack_trace(target: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "propeller.process.probe", target], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert ran.stdout.startswith(f"{target}: ")
    assert ran.stderr == ""
