"""``propeller push`` and ``pull`` against the embedded registry in a process of its own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.data import program_path
from propeller.wasm.layers import Layer
from propeller.wasm.runtimes import keep_runtime
from support.net import free_port
from support.service import start_service
from support.stack import propeller


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    env = {"OCI_REGISTRY_PORT": str(port), "OCI_REGISTRY_FOLDER": str(folder / "layout")}
    with start_service("oci-registry", env, port, folder / "log"):
        yield f"127.0.0.1:{port}"


def test_what_is_pushed_is_pulled(registry: str, tmp_path: Path) -> None:
    pushed = propeller("push", str(program_path("logreg")), f"{registry}/tools/logreg:v1")
    assert pushed.returncode == 0, pushed.stderr
    assert f"Pushed [registry] {registry}/tools/logreg:v1" in pushed.stdout
    digest = next(row for row in pushed.stdout.splitlines() if row.startswith("Digest: ")).removeprefix(
        "Digest: "
    )
    for reference in (f"{registry}/tools/logreg:v1", f"{registry}/tools/logreg@{digest}"):
        target = tmp_path / "out.wasm"
        pulled = propeller("pull", reference, "-o", str(target))
        assert pulled.returncode == 0, pulled.stderr
        assert target.read_bytes() == program_path("logreg").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["out.wasm"]


def test_a_program_is_pushed_and_pulled_with_its_runtime(registry: str, tmp_path: Path) -> None:
    """On another machine, which has made none."""
    runtime, _digest = keep_runtime(
        program_path("logreg").read_bytes(), tmp_path / "here" / "propeller" / "runtimes"
    )
    program = tmp_path / "a.wasm"
    program.write_bytes(Layer(f"sha256:{runtime.stem}", b"code").to_wasm())
    here, there = ({"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("here", "there"))
    refused = propeller("push", str(program), f"{registry}/tools/a:v1", env=there)
    assert refused.returncode == 1
    assert "the Python runtime that it was built over is not on this machine" in refused.stderr
    pushed = propeller("push", str(program), f"{registry}/tools/a:v1", env=here)
    assert pushed.returncode == 0, pushed.stderr
    assert f"Runtime: sha256:{runtime.stem}, {runtime.stat().st_size} bytes" in pushed.stdout
    assert "May: files" in pushed.stdout, "what the runtime may do"
    pulled = propeller("pull", f"{registry}/tools/a:v1", "-o", str(tmp_path / "b.wasm"), env=there)
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "b.wasm").read_bytes() == program.read_bytes()
    kept = tmp_path / "there" / "propeller" / "runtimes" / runtime.name
    assert kept.read_bytes() == runtime.read_bytes()


def test_a_reference_without_a_registry_is_in_that_of_the_stack(registry: str, tmp_path: Path) -> None:
    """Where an experiment's program of the same name is looked for."""
    state, nowhere = tmp_path / "state", tmp_path / "nowhere"
    state.mkdir()
    services = {"oci_registry": {"url": f"http://{registry}"}}
    (state / "stack.json").write_text(json.dumps({"services": services, "clients": {}}))
    program, out = str(program_path("logreg")), tmp_path / "out.wasm"
    pushed = propeller("push", program, "mine:latest", "--state", str(state))
    assert pushed.returncode == 0, pushed.stderr
    assert f"Pushed [registry] {registry}/mine:latest" in pushed.stdout
    for reference, options in ((f"{registry}/mine", ()), ("mine", ("--state", str(state)))):
        pulled = propeller("pull", reference, "-o", str(out), *options)
        assert pulled.returncode == 0, pulled.stderr
        assert out.read_bytes() == program_path("logreg").read_bytes()
        out.unlink()
    named = {"PROXY_REGISTRY_URL": f"http://{registry}/team"}  # as a stack in this environment has it
    in_environment = propeller("push", program, "mine:v2", "--state", str(nowhere), env=named)
    assert f"Pushed [registry] {registry}/team/mine:v2" in in_environment.stdout, in_environment.stderr
    refused = propeller("push", program, "mine:latest", "--state", str(nowhere))
    assert refused.returncode == 1
    assert "mine:latest names no registry" in refused.stderr
    assert f"propeller up --state {nowhere}" in refused.stderr
    assert "docker.io/library/mine:latest" in refused.stderr
    elsewhere = propeller("pull", "mine", "--url", "manager=http://127.0.0.1:1")
    assert "set PROXY_REGISTRY_URL" in elsewhere.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("push", "{tmp}/nothing.wasm", "{registry}/x:v1"), "no such file"),
        (("push", "{tmp}", "{registry}/x:v1"), "cannot be read: Is a directory"),
        (("push", "{tmp}/text.wasm", "{registry}/x:v1"), "not a Wasm module"),
        (("push", "{program}", "{registry}/x:v1", "-u", "me", "--password-stdin"), "no password came"),
        (("push", "{program}", "{registry}/x@sha256:" + "0" * 64), "cannot push to a digest"),
        (("pull", "{registry}/tools/logreg:v1", "-o", "/proc/nothing/x.wasm"), "cannot be written"),
        (("push", "{program}", "{registry}/Upper/Case:v1"), "lower"),
        (("push", "{program}", "127.0.0.1:1/x:v1"), "127.0.0.1:1"),
        (("pull", "{registry}/no/such:v1"), "no/such"),
        (("push", "{program}", "{registry}/x:v1", "-u", "me"), "--password-stdin"),
    ],
)
def test_what_a_person_did_wrong_is_one_line(
    registry: str, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "text.wasm").write_text("hello")
    names = {"tmp": tmp_path, "registry": registry, "program": program_path("logreg")}
    result = propeller(*(argument.format(**names) for argument in arguments))
    assert result.returncode == 1, result.stdout
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
