"""``propeller run``: experiment files in which something cannot be sent, and a stack that has no model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from propeller.cli.experiment import ExperimentFile, read_json, run_experiment
from propeller.errors import PropellerError
from propeller.process.run import StartError
from propeller.sdk import Propeller

GOOD = 'image = "i"\n[hyperparams]\nlr = 0.1\nlayers = [8, { size = 2 }]\n[model]\nw = [0.0, 1.0]\n'


def test_what_json_has_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(GOOD)
    found = ExperimentFile.load(file)
    assert found.hyperparams == {"lr": 0.1, "layers": [8, {"size": 2}]}
    assert found.first_model(tmp_path) == {"w": [0.0, 1.0]}


@pytest.mark.parametrize("value", ["1979-05-27", "[07:32:00]", "nan", "{ a = [inf] }"])
@pytest.mark.parametrize(("table", "name"), [("hyperparams", "lr"), ("model", "w")])
def test_what_json_has_not_is_named(tmp_path: Path, table: str, name: str, value: str) -> None:
    file = tmp_path / "experiment.toml"
    lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in GOOD.splitlines()]
    file.write_text("\n".join(lines))
    with pytest.raises(StartError, match=rf"experiment\.toml: {table}: {name} must be made of"):
        ExperimentFile.load(file)


def test_a_number_that_is_none_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_text('{"w": NaN}')
    with pytest.raises(StartError, match=r"model\.json: not JSON: NaN is not a number in JSON"):
        read_json(file)


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
            with pytest.raises(PropellerError, match="there is no model yet"):
                run_experiment(tmp_path / "experiment.toml", tmp_path, image=None, rounds=None)
            with Propeller.from_state(tmp_path) as fl, pytest.raises(PropellerError, match="no model yet"):
                fl.start_round("i", participants=["p1"])
        finally:
            server.shutdown()
            thread.join()
