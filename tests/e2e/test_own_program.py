"""A person's own training code, from an empty folder to a trained model, as the README says; and ``run``'s refusals."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from propeller.sdk import Experiment, Propeller
from support import command_server
from support.python_programs import built
from support.stack import PROPELLER, Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("own") / ".propeller") as running:
        yield running


@pytest.fixture(scope="module")
def project(up: Up) -> Path:
    """Beside the stack's folder, as in the README."""
    return up.folder.parent / "mine"


def run(
    up: Up, project: Path, *arguments: str, code: int = 0, folder: str = "mine"
) -> "subprocess.CompletedProcess[str]":
    done = command_server.run(list(arguments), dict(os.environ), 120, folder=up.folder.parent / folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def image(up: Up, project: Path) -> str:
    """The project made, built and pushed."""
    run(up, project, "new", "mine", folder=".")
    built(project / "train.py")  # once for all tests of this script
    assert "Built train.wasm" in run(up, project, "build", "train.py").stdout
    reference = f"{up.url('oci_registry').removeprefix('http://')}/mine:latest"
    assert "sha256:" in run(up, project, "push", "train.wasm", reference).stdout
    return reference


STATE = ("--state", "../.propeller")


def experiment(project: Path, **changes: str) -> str:
    """The project's experiment file with some of its lines replaced."""
    text = (project / "experiment.toml").read_text()
    for field, value in changes.items():
        text = re.sub(rf"(?m)^(# )?{field} = .*$", value, text)
    (project / "other.toml").write_text(text)
    return "other.toml"


def test_a_script_is_built_pushed_and_run_as_it_is_now(up: Up, project: Path, image: str) -> None:
    """From the command line and from Python; a repository is named by the experiment."""
    for edit in ("# once", "# and again"):
        with (project / "train.py").open("a") as script:
            script.write(f"{edit}\n")
        lines = run(up, project, "run", "experiment.toml", "--rounds", "1", *STATE).stdout.splitlines()
        assert re.fullmatch(r"Program train\.py: built in \d+\.\d s, pushed in \d+\.\d s", lines[0])
        assert re.fullmatch(r"Experiment mine-[0-9a-f]{8}: train\.py, 1 round of fedavg", lines[1])
        assert lines[2].startswith("  round  1  updates 3/3  loss 0.")
    with Propeller.from_state(up.folder) as fl:
        ran = fl.experiments(name="mine")[:2]
        references = [one["program"] for one in ran]
        assert all("/mine@sha256:" in reference for reference in references)
        assert len(set(references)) == 2
        data = [{"data": [{"x": [0.5, 1.0], "y": 1}]}] * 3
        made = Experiment(
            program=str(project / "train.py"), rounds=1, model={"w": [0.0, 0.0], "b": 0.0}, data=data
        )
        handle = fl.run(made)
        assert handle.wait().state == "completed"
        assert handle.status()["program"].rpartition("@")[2] == references[0].rpartition("@")[2]


def test_a_script_that_cannot_be_run_starts_nothing(up: Up, project: Path, image: str) -> None:
    (project / "broken.py").write_text("def f(:\n")
    refused = {
        "nothing.py": r"error: program: .*nothing\.py: there is no such file here",
        "broken.py": r"error: .*broken\.py:1: SyntaxError",
        "data/1.json": "error: ",
    }
    for program, reason in refused.items():
        name = experiment(project, program=f'program = "{program}"')
        assert re.search(reason, run(up, project, "run", name, *STATE, code=1).stderr)


def test_from_an_empty_folder_to_a_trained_model(up: Up, project: Path, image: str) -> None:
    """With the one difference that the registry is on a free port."""
    done = run(up, project, "run", "experiment.toml", "--image", image, *STATE)
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"Experiment mine-[0-9a-f]{{8}}: {image}, 5 rounds of fedavg", lines[0])
    accuracy = [float(found) for found in re.findall(r"accuracy (\S+)", done.stdout)]
    loss = [float(found) for found in re.findall(r"loss (\S+)", done.stdout)]
    assert len(accuracy) == 5
    assert accuracy[-1] > 0.9 > accuracy[0]
    assert loss == sorted(loss, reverse=True)
    assert all("updates 3/3" in line for line in lines[1:6])
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    url = re.search(r"http://\S+", lines[-1])
    assert url is not None
    assert httpx.get(url[0]).json()["w"][1] < -0.5
    logged = propeller("logs", "--state", str(up.folder), "--service", "proplet").stdout
    assert "trained on 64 samples" in logged


def test_an_error_of_the_program_is_the_rounds_reason(up: Up, project: Path, image: str) -> None:
    """Round and run fail by the line of the person's own code."""
    file = experiment(project, lr='lr = "fast"')
    error = run(up, project, "run", file, "--image", image, "--rounds", "1", *STATE, code=1).stderr
    assert re.match(
        r"error: experiment mine-\S+ failed after 0 of 1 rounds: round 1 failed, and is not tried again",
        error,
    )
    assert "train.py:" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": "round = 5"}, "round: there is no such field; did you mean 'rounds'"),
        ({"rounds": "rounds = 0"}, "rounds"),
        ({"rounds": "rounds = 'many'"}, "rounds"),
        ({"rounds": "rounds ="}, "not TOML"),
        ({"program": ""}, "program"),
        ({"files": "files = ['data/1.json']"}, "there are 1 data sets for 3 devices"),
        (
            {"files": "files = ['absent.json', 'data/2.json', 'data/3.json']"},
            "data.files: there is no file or folder absent.json",
        ),
        ({"b": "file = 'absent.json'"}, "give tensors, or file, or version"),
        ({"w": "w = [1, 'a']"}, "w"),
        ({"names": "selection = { names = ['nobody'] }", "files": "files = ['data/1.json']"}, "nobody"),
        ({"k_of_n": "k_of_n = 0.5"}, "k_of_n"),
        ({"program": "program = '127.0.0.1:PORT/none:latest'", "rounds": "rounds = 1\nretries = 0"}, "none"),
    ],
)
def test_refusals_name_the_field(
    up: Up, project: Path, image: str, changes: dict[str, str], expected: str
) -> None:
    port = image.partition(":")[2].partition("/")[0]
    file = experiment(project, **{"program": f'program = "{image}"', **changes})
    text = (project / file).read_text().replace("PORT", port)
    (project / file).write_text(text)
    error = run(up, project, "run", file, *STATE, code=1).stderr
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1, error


def test_no_experiment_and_no_stack(up: Up, project: Path, image: str) -> None:
    assert image
    assert "absent.toml: No such file" in run(up, project, "run", "absent.toml", *STATE, code=1).stderr
    assert "propeller up" in run(up, project, "run", "experiment.toml", code=1).stderr


def test_ctrl_c_ends_the_command(up: Up, project: Path, image: str) -> None:
    with subprocess.Popen(
        [*PROPELLER, "run", "experiment.toml", "--image", image, "--rounds", "10000", *STATE],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("round  1" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in error
