"""The services of a stack as a client sees them, in one HTTP server with one experiment whose events are given by the test.

What no real stack does when it is asked to, this one does: break a stream in the middle, be away for a while, want to know who calls.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from propeller.fl.strategies import describe_strategy
from propeller.fl.tensors import to_safetensors
from propeller.process.http import basic_authorization

DEVICES = [
    {"id": "id-1", "name": "calm-otter-41", "alive": True, "task_count": 0},
    {"id": "id-2", "name": "brave-fox-7", "alive": True, "task_count": 0},
    {"id": "id-3", "name": "old-crow-2", "alive": False, "task_count": 0},
]
BROKEN = {"name": "broken", "error": "cannot be loaded"}
SERVICES = ("manager", "coordinator", "model_registry", "data_store")
USER, PASSWORD, TOKEN = "admin", "12345678", "a-token"


class FakeStack:
    """What it was sent, and what it answers."""

    def __init__(self) -> None:
        self.devices: list[dict[str, Any]] = list(DEVICES)
        self.specs: dict[str, dict[str, Any]] = {}
        self.state, self.reason = "running", None
        self.models: list[bytes] = [to_safetensors({"w": np.array([1.0, 2.0])})]
        self.datasets: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.steered: list[str] = []
        self.rounds: list[str] = []
        self.resumed_behind: list[str | None] = []
        self.breaks_after: list[int] = []
        self.away = 0
        self.loses_answers = 0
        self.wants_login = False
        self.refusal: str | None = None
        self.keeps_silent = False
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where all its services are."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def urls(self) -> dict[str, Any]:
        """The addresses of its services, as a client is given them."""
        return dict.fromkeys((*SERVICES, "identity"), self.url)

    def happen(self, kind: str, /, **data: Any) -> None:
        """Add an event."""
        with self._changed:
            self._events.append((kind, {"at": "2026-11-27T12:00:00.000000Z", "experiment": "exp", **data}))
            if kind == "state":
                self.state, self.reason = data["state"], data.get("reason")
            self._changed.notify_all()

    @contextlib.contextmanager
    def running(self) -> "Iterator[FakeStack]":
        """Serve for the length of the block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self.state = "stopped"
                self._changed.notify_all()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def summary(self, experiment_id: str) -> dict[str, Any]:
        """What is said of an experiment."""
        spec = self.specs[experiment_id]
        done = sum(1 for one in self.history if one["kind"] == "train" and one["state"] == "completed")
        return {
            "id": experiment_id,
            "name": spec["name"],
            "state": self.state,
            "reason": self.reason,
            "program": spec["program"],
            "strategy": spec["strategy"],
            "rounds": spec["rounds"],
            "done": done,
            "model_version": len(self.models) - 1 if done else None,
            "best": self.best,
            "created_at": "2026-11-27T12:00:00.000000Z",
            "started_at": "2026-11-27T12:00:00.000000Z",
            "ended_at": "2026-11-27T12:00:02.000000Z"
            if self.state in {"completed", "stopped", "failed"}
            else None,
        }

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        """Status and JSON (or bytes) of the answer to a request."""
        first, *rest = path.strip("/").split("/")
        if first == "experiments":
            return self._experiments(method, rest, query, body)
        if first == "models":
            return self._models(method, rest, body)
        if first == "rounds":
            return self._rounds(method, rest)
        match method, first, rest:
            case "POST", "users", ["tokens", "issue"]:
                asked = json.loads(body)
                if (asked["username"], asked["password"]) != (USER, PASSWORD):
                    return 401, {"error": "wrong user name or password"}
                return 201, {"access_token": TOKEN, "refresh_token": "r"}
            case "GET", "proplets", []:
                return 200, {"total": len(self.devices), "proplets": self.devices[int(query["offset"][0]) :]}
            case "GET", "strategies", names:
                found = [describe_strategy(name).to_json() for name in names or ["fedavg"]]
                return 200, found[0] if names else {"strategies": [*found, BROKEN]}
            case "POST", "datasets", [name]:
                self.datasets[name] = json.loads(body)
                return 201, {}
        return 404, {"error": f"there is no {path}"}

    def _submit(self, spec: dict[str, Any]) -> tuple[int, Any]:
        self.specs[spec["id"]] = spec
        with self._changed:
            self._changed.wait_for(lambda: not self.keeps_silent or self.state == "stopped")
        if self.loses_answers:
            self.loses_answers -= 1
            return 503, {"error": "the coordinator did not answer the proxy"}
        return 201, {**self.summary(spec["id"]), "spec": spec}

    def _models(self, method: str, rest: list[str], body: bytes) -> tuple[int, Any]:
        if method == "POST":
            self.models.append(body)
            return 201, {"version": len(self.models) - 1}
        return (
            (200, self.models[int(rest[0])]) if rest else (200, {"versions": list(range(len(self.models)))})
        )

    def _rounds(self, method: str, rest: list[str]) -> tuple[int, Any]:
        if not rest:
            return 200, {"rounds": [{"round_id": name} for name in self.rounds]}
        if rest[0] not in self.rounds:
            return 404, {"error": "Round not found"}
        self.steered.append(" ".join(rest) if method == "POST" else "")
        return 200, {"round_id": rest[0]}

    def _check(self, spec: dict[str, Any], *, brings_dataset: bool) -> tuple[int, Any]:
        if self.refusal is not None:
            return 400, {"error": self.refusal}
        central = spec.get("evaluate", {}).get("dataset")
        if central not in {None, *self.datasets} and not brings_dataset:
            return 404, {"error": f"evaluate.dataset: the data store has no data set {central!r}"}
        return 200, {"exists": spec["id"] in self.specs, "spec": spec}

    def _experiments(
        self, method: str, rest: list[str], query: dict[str, list[str]], body: bytes
    ) -> tuple[int, Any]:
        if (method, rest) == ("POST", ["check"]):
            return self._check(json.loads(body), brings_dataset=query.get("brings_dataset") == ["true"])
        if rest and rest[0] not in self.specs:
            return 404, {"error": f"there is no experiment {rest[0]}"}
        match method, rest:
            case "POST", []:
                return self._submit(json.loads(body))
            case "GET", []:
                wanted = query.get("name")
                names = [one for one, spec in self.specs.items() if wanted in (None, [spec["name"]])]
                found = [self.summary(one) for one in reversed(names)]
                return 200, {"total": len(found), "experiments": found}
            case "GET", [name]:
                return 200, {**self.summary(name), "spec": self.specs[name], "round": None}
            case "GET", [_, "history"] if query.get("format") == ["csv"]:
                return 200, b"number,proplet_id\r\n1,id-1\r\n"
            case "GET", [name, "history"]:
                return 200, {"id": name, "rounds": self.history}
            case "POST", [name, verb]:
                self.steered.append(verb)
                return 202, self.summary(name)
        return 405, {"error": "no such route"}

    def stream(self, behind: str | None) -> Iterator[bytes]:
        """The events behind one, as they are sent, until the experiment is over or the connection is to break."""
        self.resumed_behind.append(behind)
        sent, limit = int(behind or 0), self.breaks_after.pop(0) if self.breaks_after else None
        while limit is None or limit > 0:
            with self._changed:
                while len(self._events) <= sent and self.state not in {"completed", "stopped", "failed"}:
                    self._changed.wait()
                if len(self._events) <= sent:
                    return
                kind, data = self._events[sent]
            sent += 1
            limit = None if limit is None else limit - 1
            yield f"id: {sent}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
        yield b"id: 99\nevent: update\ndata: {"  # cut off in the middle

    def _handler(stack: "FakeStack") -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                knows = self.headers.get("authorization") in {
                    f"Bearer {TOKEN}",
                    basic_authorization(USER, PASSWORD),
                }
                if stack.away:
                    stack.away -= 1
                    self._send(503, {"error": "is starting"})
                elif stack.wants_login and not knows and not asked.path.startswith("/users"):
                    self._send(401, {"error": "credentials required"})
                elif asked.path.endswith("/events") and asked.path.split("/")[2] in stack.specs:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self._send_events(stack.stream(self.headers.get("last-event-id")))
                else:
                    self._send(*stack.answer(self.command, asked.path, parse_qs(asked.query), body))

            def _send_events(self, events: Iterator[bytes]) -> None:
                with contextlib.suppress(ConnectionError):
                    for event in events:
                        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                        if not event.endswith(b"\n\n"):
                            self.close_connection = True
                            return
                    self.wfile.write(b"0\r\n\r\n")

            do_POST = do_GET  # noqa: N815 - the name that http.server looks for

            def _send(self, status: int, content: Any) -> None:
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                with contextlib.suppress(ConnectionError):  # who asked may be gone
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, *_arguments: object) -> None:
                pass

        return Handler
