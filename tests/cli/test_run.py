"""``propeller run`` on a stack that has no model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from propeller.cli.experiment import run_experiment
from propeller.process.run import StartError
from propeller.sdk import Propeller, PropellerError


class _NoModels(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"versions": []}'
        self.send_response(200 if self.path == "/models" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_stack_without_a_model(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _NoModels) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            names = ("manager", "coordinator", "model_registry", "data_store")
            stack = {"services": {name: {"url": url} for name in names}}
            (tmp_path / "stack.json").write_text(json.dumps(stack))
            (tmp_path / "experiment.toml").write_text('image = "i"\nparticipants = ["p1"]\n')
            with pytest.raises(StartError, match="there is no model yet"):
                run_experiment(tmp_path / "experiment.toml", tmp_path, image=None, rounds=None)
            with Propeller.from_state(tmp_path) as fl, pytest.raises(PropellerError, match="no model yet"):
                fl.start_round("i", participants=["p1"])
        finally:
            server.shutdown()
            thread.join()
