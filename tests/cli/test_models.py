"""``propeller model …`` against a model registry."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.errors import PropellerError
from propeller.fl.tensors import SAFETENSORS, from_safetensors, to_safetensors
from propeller.sdk.addresses import read_stack
from support.net import free_port
from support.service import start_service
from support.stack import propeller

LINEAGE = {
    "experiment": "digits-1",
    "number": 1,
    "round": "digits-1.1",
    "parent": 0,
    "strategy": {"name": "fedadam", "params": {"eta": 0.1}},
    "program": {"reference": "localhost:5000/digits:v1"},
    "participants": 3,
    "num_samples": 1347,
    "metrics": {"loss": 0.25},
}
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "[b]": np.array(0.5)}


class Coordinator(BaseHTTPRequestHandler):
    """Verifies version 1 and finds version 2 different; cannot verify version 0."""

    def do_POST(self) -> None:
        version = int(self.path.split("/")[2])
        body: dict[str, Any] = {"error": "version 0 was not made by a round"}
        if version:
            recomputed = "a" * 64 if version == 1 else "b" * 64
            body = {
                "version": version,
                "verified": version == 1,
                "digest": "a" * 64,
                "recomputed": recomputed,
                "updates": 3,
            }
        content = json.dumps(body).encode()
        self.send_response(200 if version else 409)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """There is one experiment, ``digits-1``, called ``digits``."""
        path, _, query = self.path.partition("?")
        name = path.removeprefix("/experiments").strip("/")
        known = [{"id": "digits-1", "name": "digits", "state": "completed"}]
        found = [] if "name=" in query and "name=digits&" not in f"{query}&" else known
        body: dict[str, Any] = {"experiments": found}
        if name:
            body = known[0] if name == "digits-1" else {"error": "no such experiment"}
        content = json.dumps(body).encode()
        self.send_response(404 if "error" in body else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose registry has versions 0 to 2."""
    folder, port = tmp_path_factory.mktemp("state"), free_port()
    env = {"MODELS_DIR": str(folder / "models"), "REGISTRY_PORT": str(port)}
    coordinator = ThreadingHTTPServer(("127.0.0.1", 0), Coordinator)
    thread = threading.Thread(target=coordinator.serve_forever, args=(0.05,))
    thread.start()
    try:
        with start_service("model-registry", env, port, folder / "log"):
            url = f"http://127.0.0.1:{port}"
            services = {
                "model_registry": {"url": url},
                "coordinator": {"url": f"http://127.0.0.1:{coordinator.server_port}"},
            }
            (folder / "stack.json").write_text(json.dumps({"services": services}))
            content = to_safetensors(MODEL, {"lineage": json.dumps(LINEAGE)})
            httpx.post(f"{url}/models", content=content, headers={"content-type": SAFETENSORS})
            changed = {**MODEL, "w": MODEL["w"] + np.float32(1)}
            httpx.post(
                f"{url}/models", content=to_safetensors(changed), headers={"content-type": SAFETENSORS}
            )
            httpx.put(f"{url}/aliases/digits-1/best", json={"version": 1})
            yield folder
    finally:
        coordinator.shutdown()
        coordinator.server_close()
        thread.join()


def run(state: Path, *words: str) -> str:
    done = propeller("model", *words, "--state", str(state))
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(state: Path, *words: str) -> str:
    done = propeller("model", *words, "--state", str(state))
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_list_and_show(state: Path) -> None:
    shown = run(state, "list", "--experiment", "digits-1")
    assert "fedadam" in shown
    assert "loss 0.25" in shown
    assert "v2" not in shown
    listed = json.loads(run(state, "list", "--json"))
    assert {line["version"] for line in listed} >= {0, 1, 2}
    listed = json.loads(run(state, "list", "--alias", "digits-1/best", "--json"))
    assert [line["version"] for line in listed] == [1]
    shown = run(state, "show", "digits-1/best")
    for part in ("v1", "digits-1/best", "3 updates of 1,347 samples", '{"eta": 0.1}', "F32", "[2, 3]", "[b]"):
        assert part in shown
    assert json.loads(run(state, "show", "1", "--json"))["lineage"] == LINEAGE
    assert "did you mean 'digits-1/best'?" in fail(state, "show", "digits-1/bset")


def test_the_versions_of_no_experiment(state: Path) -> None:
    """One that there is not is an error with the one that may be meant; one without versions that fit is not."""
    assert "fedadam" in run(state, "list", "--experiment", "digits")
    text = fail(state, "list", "--experiment", "digist")
    assert text == (
        "error: there is no experiment digist; did you mean digits? 'propeller experiments' lists those there are\n"
    )
    assert "there is no experiment nope:" in fail(state, "list", "--experiment", "nope", "--json")
    assert (
        run(state, "list", "--experiment", "digits", "--strategy", "fedavg")
        == "No model versions that fit.\n"
    )
    assert run(state, "list", "--experiment", "digits-1", "--strategy", "fedavg", "--json") == "[]\n"
    # Of an experiment that the coordinator does not have.
    run(state, "import", _file(state), "--version", "80", "--lineage", '{"experiment": "elsewhere"}')
    assert "v80" in run(state, "list", "--experiment", "elsewhere")
    assert "No model" in run(state, "list", "--experiment", "elsewhere", "--strategy", "fedavg")


def _file(state: Path) -> str:
    file = state / "elsewhere.npz"
    np.savez(file, w=np.zeros(2))
    return str(file)


def test_diff(state: Path) -> None:
    shown = run(state, "diff", "digits-1/best", "2")
    assert "v1 → v2: 1 same, 1 changed" in shown
    assert "6/6" in shown
    assert f"{6**0.5:.4g}" in shown
    assert json.loads(run(state, "diff", "1", "2", "--json"))["total"]["max_abs"] == 1.0


def test_export_and_import(state: Path, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz", ".json"):
        file = tmp_path / f"model{suffix}"
        assert f"Wrote v1 to {file}" in run(state, "export", "digits-1/best", str(file))
        again = run(state, "import", str(file))
        number = again.split()[-1].removeprefix("v")
        total = json.loads(run(state, "diff", "1", number, "--json"))["total"]
        assert total["changed"] == 0
        assert total["tensors"]["removed"] == 0
    (tmp_path / "lineage.json").write_text('{"experiment": "at-home"}')
    for number, given in (("90", '{"experiment": "by-hand"}'), ("91", str(tmp_path / "lineage.json"))):
        run(state, "import", str(tmp_path / "model.npz"), "--version", number, "--lineage", given)
        shown = json.loads(run(state, "show", number, "--json"))
        assert shown["lineage"]["experiment"] in {"by-hand", "at-home"}
    assert "--lineage: " in fail(state, "import", str(tmp_path / "model.npz"), "--lineage", "{")
    assert "lineage: number" in fail(
        state, "import", str(tmp_path / "model.npz"), "--lineage", '{"number": 0}'
    )
    tensors, metadata = from_safetensors((tmp_path / "model.safetensors").read_bytes())
    assert json.loads(metadata["lineage"]) == LINEAGE
    np.testing.assert_array_equal(tensors["w"], MODEL["w"])


def test_files_that_cannot_be(state: Path, tmp_path: Path) -> None:
    assert "must end in .safetensors" in fail(state, "export", "1", str(tmp_path / "model.pt"))
    gone = tmp_path / "model.npz"
    assert "no alias 'nobody'" in fail(state, "export", "nobody", str(gone))
    assert not list(tmp_path.iterdir())
    assert "No such file" in fail(state, "import", str(gone))
    gone.write_bytes(b"no archive")
    assert "not an .npz file" in fail(state, "import", str(gone))
    (tmp_path / "model.json").write_text('{"w": [NaN]}')
    assert "NaN" in fail(state, "import", str(tmp_path / "model.json"))


def test_aliases(state: Path) -> None:
    assert run(state, "alias", "production", "digits-1/best") == "production is v1\n"
    assert json.loads(run(state, "alias", "--json")) == {"digits-1/best": 1, "production": 1}
    assert "production" in run(state, "alias")
    assert "no alias any more" in run(state, "alias", "--delete", "production")
    gone_alias = fail(state, "alias", "--delete", "production")
    assert "there is no alias 'production'; 'propeller model alias' lists those there are" in gone_alias
    assert "there is no version 99; 'propeller model list' lists those there are" in fail(state, "show", "99")
    assert "means something else" in fail(state, "alias", "latest", "1")
    assert "no version 99" in fail(state, "alias", "production", "99")
    for words in (["alias", "production"], ["alias", "--delete"], ["alias", "--delete", "production", "1"]):
        assert propeller("model", *words, "--state", str(state)).returncode == 2


def test_verify(state: Path) -> None:
    assert "v1 is what its 3 updates make, bit for bit: aaaa" in run(state, "verify", "digits-1/best")
    different = propeller("model", "verify", "2", "--state", str(state))
    assert different.returncode == 1
    assert "v2 is NOT what its 3 updates make" in different.stdout
    assert "bbbb" in different.stdout
    assert "was not made by a round" in fail(state, "verify", "0")


def test_without_a_stack(tmp_path: Path) -> None:
    assert "no stack is ready" in fail(tmp_path, "list")


def test_a_stack_in_the_folder_above_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(PropellerError, match=r"--state \.propeller'$"):
        read_stack(".propeller")
    (tmp_path / ".propeller").mkdir()
    (tmp_path / ".propeller" / "stack.json").write_text("{}")
    with pytest.raises(PropellerError, match=r"in the folder above: --state \.\./\.propeller$"):
        read_stack(".propeller")
    with pytest.raises(PropellerError, match=r"/other'$"):
        read_stack(tmp_path / "other")
