"""``propeller new``, ``build`` and ``try``: what they make, and what they say of what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime
from safetensors.numpy import save_file

from propeller.cli import try_program
from propeller.cli.project import run_new
from propeller.cli.trial import Trial, TrialInputs
from propeller.cli.try_program import run_try
from propeller.data import program_path
from propeller.errors import StartError
from propeller.functions import functions_of
from propeller.wasm import build as building
from propeller.wasm.program_run import Limits
from support.net import has_ended, wait_until
from support.programs import echo
from support.python_programs import CACHE_HOME, SOURCES, built
from support.stack import PROPELLER, propeller

pytestmark = pytest.mark.timeout(180)

ENV = {"XDG_CACHE_HOME": str(CACHE_HOME), "COLUMNS": "200"}
NOTHING = TrialInputs(None, None, None, "train")
HEAD = "from propeller.program import Update, train\nfrom propeller.program import tensors as pt\n\n"


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return propeller(*map(str, arguments), env=ENV)


def said(done: "subprocess.CompletedProcess[str]", code: int = 1) -> str:
    """What a failed command printed: no trace of our own code."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "site-packages" not in done.stderr
    assert "src/propeller" not in done.stderr
    return done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    run_new(tmp_path / "mine")
    return tmp_path / "mine"


def script(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def task(folder: Path, body: str) -> Path:
    """A script that trains with a function of this body."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return script(folder, f"{HEAD}@train\ndef fit(model, data, hyperparams, ctx):\n{lines}")


# new ------------------------------------------------------------------------------------------------------------


def test_new_makes_what_its_readme_says(tmp_path: Path) -> None:
    made = run("new", tmp_path / "mine")
    assert made.returncode == 0, made.stderr
    project = tmp_path / "mine"
    assert made.stdout == f"Created {project}. Next:\n  cd {project}\n  propeller try train.py\n"
    files = {str(file.relative_to(project)) for file in project.rglob("*") if file.is_file()}
    assert files == {"train.py", "experiment.toml", "README.md", "data/1.json", "data/2.json", "data/3.json"}
    assert 'name = "mine"\nprogram = "train.py"' in (project / "experiment.toml").read_text()
    assert "NAME" not in (project / "README.md").read_text()


def test_new_leaves_what_is_there_alone(project: Path) -> None:
    before = (project / "train.py").read_bytes()
    assert "already exists" in said(run("new", project))
    (project.parent / "file").write_text("")
    assert "already exists" in said(run("new", project.parent / "file"))
    assert (project / "train.py").read_bytes() == before


@pytest.mark.parametrize("name", ["Mine", "two words", "-x-", "a__b", "ü"])
def test_new_refuses_names_that_no_image_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match="cannot name an image") as caught:
        run_new(tmp_path / name)
    assert repr(name) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# build ----------------------------------------------------------------------------------------------------------


def test_built_it_gives_what_it_gives_natively(project: Path) -> None:
    """The whole way of a newcomer before a stack: native, built, built again from the cache, in the sandbox."""
    native = run("try", project / "train.py")
    kept = built(project / "train.py")  # once for all tests of this script
    made = run("build", project / "train.py")
    assert made.returncode == 0, made.stderr
    assert f"Built {project / 'train.wasm'} (" in made.stdout
    assert "Digest: sha256:" in made.stdout
    assert (project / "train.wasm").read_bytes() == kept.read_bytes()
    assert functions_of(kept.read_bytes()) == ["train", "evaluate"]
    again = run("build", project / "train.py", "-o", project / "new" / "again.wasm")
    assert "from the cache" in again.stdout
    assert (project / "new" / "again.wasm").read_bytes() == (project / "train.wasm").read_bytes()
    sandboxed = run("try", project / "train.wasm")
    assert sandboxed.returncode == 0, sandboxed.stderr
    assert native.stderr.splitlines() == sandboxed.stderr.splitlines()[:-1]
    assert "trained on 64 samples" in native.stderr
    assert "tensor operations" in sandboxed.stderr.splitlines()[-1]
    one, other = json.loads(native.stdout), json.loads(sandboxed.stdout)
    assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-6)
    assert one["update"]["w"] == pytest.approx(other["update"]["w"], abs=1e-6)
    assert one["metrics"]["accuracy"] > 0.7
    evaluated = run("try", project / "train.wasm", "--mode", "evaluate")
    assert "update" not in json.loads(evaluated.stdout)

    # An error of the program's own code: the lines are there, though the sandbox has no such file.
    (project / "three.json").write_text('{"data": [{"x": [1, 2, 3], "y": 1}]}')
    failed = run("try", project / "train.wasm", "--data", project / "three.json")
    error = said(failed)
    assert '  File "train.py", line 11, in loss\n    p = pt.sigmoid(x @ model["w"] + model["b"])\n' in error
    assert "train.py:11: TensorError: matmul: shapes [1, 3] and [2] do not fit" in error
    assert error.splitlines()[-1] == "error: the program exited with code 1"
    late = run("try", project / "train.wasm", "--hyperparams", '{"epochs": 100000000}', "--wall-time", "0.5")
    assert "error: wall_time_s: over the limit of 0.5 s" in said(late)


def test_an_exception_while_it_is_loaded(tmp_path: Path) -> None:
    """Known only once it runs, in CPython in Wasm: the traceback goes through the module beside the script."""
    script(tmp_path, "def broken(table):\n    return table['absent']\n", "helpers.py")
    file = script(
        tmp_path, f"{HEAD}import helpers\n\n@train\ndef fit(*task):\n    pass\n\nhelpers.broken({{}})\n"
    )
    error = said(run("build", file))
    assert error.startswith(f"error: {file} cannot be loaded:\nTraceback (most recent call last):\n")
    assert f'  File "{file}", line 10, in <module>\n    helpers.broken({{}})\n' in error
    assert f'  File "{tmp_path / "helpers.py"}", line 2, in broken\n' in error
    assert error.splitlines()[-1] == "helpers.py:2: KeyError: 'absent'"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "helpers.py", file]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mine.py", "x = 1\ndef f(:\n", "mine.py:2: SyntaxError: invalid syntax\n    def f(:"),
        ("mine.py", "import numpy as np\n", "mine.py:1: no module 'numpy' for programs"),
        (
            "mine.py",
            "def f():\n    from nowhere.at_all import x\n",
            "mine.py:2: no module 'nowhere' for programs",
        ),
        ("mine.py", "import ssl\n", "mine.py:1: no module 'ssl' for programs"),
        ("mine.py", "x = 1\n", "no function is marked with @train"),
        ("mine.py", "x = '\x00'\n", "null bytes"),
        ("json.py", HEAD, "'json' is a module that the program needs itself"),
        ("__main__.py", HEAD, "'__main__' is a module that the program needs itself"),
        ("propeller_entry.py", HEAD, "'propeller_entry' is a module that the program needs itself"),
        ("class.py", HEAD, "a Python name"),
        ("two-words.py", HEAD, "a Python name"),
        ("mine.txt", HEAD, "give a .py file"),
    ],
)
def test_what_cannot_be_built_is_said_at_once(tmp_path: Path, name: str, text: str, expected: str) -> None:
    file = script(tmp_path, text, name)
    with pytest.raises(building.BuildError) as caught:
        building.build(file, tmp_path / "out.wasm", cache=tmp_path / "cache")
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "out.wasm").exists()
    assert not (tmp_path / "cache").exists()


def test_where_it_cannot_be_written(project: Path) -> None:
    assert "is a folder" in said(run("build", project / "train.py", "-o", project))
    assert "there is no such file" in said(run("build", project / "absent.py"))
    assert "Usage" in said(run("build"), 2)


def test_componentize_py_is_not_installed(project: Path) -> None:
    """As for someone who installed the package without its extra."""
    code = (
        "import importlib.metadata as m, sys\n"
        "find = m.distribution\n"
        "def without(name):\n"
        "    if name == 'componentize-py': raise m.PackageNotFoundError(name)\n"
        "    return find(name)\n"
        "m.distribution = without\n"
        f"sys.argv = ['propeller', 'build', {str(project / 'train.py')!r}]\n"
        "from propeller.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'propeller[build]'" in said(done)


# try ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise KeyError('x')", "mine.py:6: KeyError: 'x'"),
        ("raise SystemExit(3)", "mine.py:6: SystemExit: 3"),
        (
            "return None",
            "mine.py:4: TypeError: fit is marked with @train: it returns an Update, not NoneType",
        ),
        (
            "return Update({**model, 'w': pt.zeros(7)}, num_samples=1)",
            "the update's 'w' has shape [7], the base model's [2]",
        ),
        ("return Update({'v': 1.0}, num_samples=1)", "it lacks b, w and has v beside it"),
        ("return Update({**model, 'b': float('nan')}, num_samples=1)", "'b' has numbers that are not finite"),
        ("return Update(model, num_samples=0)", "mine.py:4: ValueError: num_samples is 0"),
        ("return Update(model, num_samples=1, metrics={'loss': 1e999})", "metrics: 'loss' is inf"),
        ("import sys\nsys.__stdout__.write('mine')\nreturn Update(model, num_samples=1)", "it begins 'mine{"),
    ],
)
def test_mistakes_in_a_script(
    project: Path, body: str, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_try(task(project, body), NOTHING, Limits()) == 1
    printed = capfd.readouterr().err
    assert expected in printed
    assert "src/propeller" not in printed
    assert printed.splitlines()[-1].startswith("error: ")


def test_mistakes_while_a_script_is_loaded(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two = "@train\ndef a(*task):\n    pass\n\n@train\ndef b(*task):\n    pass\n"
    for text, expected in (
        (f"{HEAD}{two}", "mine.py:8: ValueError: two functions are marked with @train: a and b"),
        ("import nowhere\n", "mine.py:1: ModuleNotFoundError: No module named 'nowhere'"),
        ("x = 1\n", "mark one with @train"),
    ):
        assert run_try(script(project, text), NOTHING, Limits()) == 1
        printed = capfd.readouterr().err
        assert expected in printed
        assert "src/propeller" not in printed


def test_a_script_imports_what_is_beside_it_and_not_what_shadows(project: Path) -> None:
    """Natively as when it is built: the standard library's ``json`` comes first."""
    script(project, "raise RuntimeError('shadowed')\n", "json.py")
    script(project, "def twice(x):\n    return 2 * x\n", "helpers.py")
    body = "import json\nfrom helpers import twice\nreturn Update(model, num_samples=twice(21))"
    done = run("try", task(project, body))
    assert json.loads(done.stdout)["num_samples"] == 42, done.stderr


@pytest.mark.parametrize(
    ("option", "content", "expected"),
    [
        ("--model", None, "No such file"),
        ("--model", '{"w": [0, 0', "Invalid JSON: EOF while parsing a list at line 1 column 11"),
        ("--model", "[1, 2]", "expected an object, got list"),
        ("--model", '{"w": [[0, 1], [0]], "b": 0}', "tensor 'w': is ragged"),
        ("--model", '{"w": ["a"]}', "tensor 'w'"),
        ("--data", None, "there is no file or folder FILE"),
        ("--data", "{", "FILE is not JSON"),
        ("--data", "[1, 2]", 'FILE, sample 0: must be an object such as {"x": [0.1, 0.2], "y": 1}'),
        ("--data", '{"rows": []}', 'FILE: must be {"data": [{"x": [0.1, 0.2], "y": 1}, …]}'),
        ("--data", '{"data": []}', "FILE: has no samples"),
        ("--data", '[{"x": [1], "y": 0}, {"x": [1]}]', "FILE, sample 1: y is missing"),
    ],
)
def test_files_that_are_not_what_they_should_be(
    project: Path, option: str, content: str | None, expected: str
) -> None:
    file = project / "given.json"
    if content is not None:
        file.write_text(content)
    asked = TrialInputs(
        None if option == "--data" else file, None if option == "--model" else file, {}, "train"
    )
    with pytest.raises(StartError) as caught:
        Trial(project / "train.py", asked)
    error = str(caught.value).replace(str(file), "FILE")
    assert error.startswith("FILE: " if option == "--model" else "--data: ")
    assert expected in error
    assert "\n" not in error


def test_data_as_a_device_that_joins_has_it(project: Path) -> None:
    (project / "rows.csv").write_text("who,a,b,grade\nann,0.5,1,1\nbob,-0.5,2,0\n")
    train = task(
        project, "print(data.x.tolist(), data.y.tolist())\nreturn Update(model, num_samples=len(data))"
    )
    done = run("try", train, "--data", project / "rows.csv", "--label", "grade")
    assert "[[0.5, 1.0], [-0.5, 2.0]] [1, 0]" in done.stderr, done.stderr
    left = f"--data: {project / 'rows.csv'}: programs are not given these columns, which are texts: who"
    assert left in done.stderr.splitlines()
    assert said(run("try", train, "--data", project / "rows.csv")).startswith(
        f"error: --label: {project / 'rows.csv'} has no column called y, "
    )
    assert "--data FILE: give that, too" in said(run("try", train, "--label", "grade"))
    described = (project / "experiment.toml").read_text()
    files = 'files = ["data/1.json", "data/2.json", "data/3.json"]'
    assert files in described
    (project / "experiment.toml").write_text(
        described.replace(files, 'files = ["rows.csv"]\nlabel = "grade"')
    )
    done = run("try", train)
    assert "[[0.5, 1.0], [-0.5, 2.0]] [1, 0]" in done.stderr, done.stderr


def test_options_that_are_not_what_they_should_be(project: Path, tmp_path: Path) -> None:
    train = project / "train.py"
    assert "--hyperparams: not JSON" in said(run("try", train, "--hyperparams", "{x"))
    assert "--hyperparams: give a JSON object" in said(run("try", train, "--hyperparams", "[1]"))
    assert "no such file" in said(run("try", project / "absent.wasm"))
    assert f"{project / 'README.md'}: not a Wasm program" in said(run("try", project / "README.md"))
    alone = script(tmp_path, train.read_text())
    assert "--model FILE" in said(run("try", alone))
    (project / "experiment.toml").write_text("imag = 1")
    assert "imag: there is no such field" in said(run("try", train))


def test_device_state_from_run_to_run(project: Path, tmp_path: Path) -> None:
    """Kept in the folder that is named, if the run succeeds; natively as in the sandbox."""
    body = "ctx.state['n'] = n = ctx.state.get('n', 0) + 1\nif n == 3:\n    1 / 0\nreturn Update(model, num_samples=n)"
    train, kept = task(project, body), tmp_path / "kept"
    for expected in (1, 2):
        done = run("try", train, "--device-state", kept)
        assert json.loads(done.stdout)["num_samples"] == expected, done.stderr
    assert "ZeroDivisionError" in run("try", train, "--device-state", kept).stderr
    assert json.loads((kept / "state" / "values.json").read_text()) == {"n": 2}
    assert json.loads(run("try", train).stdout)["num_samples"] == 1
    assert "it is not a folder" in said(run("try", train, "--device-state", train))
    assert sorted(entry.name for entry in kept.iterdir()) == [".propeller-try", "state"]
    before = sorted(project.iterdir())
    assert "it holds something else than the device state" in said(
        run("try", train, "--device-state", project)
    )
    assert sorted(project.iterdir()) == before


def test_hyperparameters_of_the_command_line_change_those_alone(project: Path) -> None:
    train = task(project, "return Update(model, num_samples=1, metrics=hyperparams)")
    plain = run("try", train)
    assert json.loads(plain.stdout)["metrics"] == {"epochs": 2, "lr": 0.2, "batch_size": 16}
    changed = run("try", train, "--hyperparams", '{"lr": 0.5, "momentum": 0.9}')
    assert json.loads(changed.stdout)["metrics"] == {
        "epochs": 2,
        "lr": 0.5,
        "batch_size": 16,
        "momentum": 0.9,
    }
    assert 'From experiment.toml: hyperparams {"epochs": 2, "batch_size": 16}, model' in changed.stderr
    (project / "experiment.toml").unlink()
    given = ("--model", project / "model.json", "--data", project / "data" / "1.json")
    (project / "model.json").write_text('{"w": [0, 0], "b": 0}')
    alone = run("try", train, *given, "--hyperparams", '{"lr": 0.5}')
    assert json.loads(alone.stdout)["metrics"] == {"lr": 0.5}


def test_strategies_and_splits(project: Path) -> None:
    """What a device would be told and given, and what the coordinator would refuse."""
    train = project / "train.py"
    plain = json.loads(run("try", train).stdout)
    pulled = json.loads(run("try", train, "--strategy", '{"name": "fedprox", "mu": 5}').stdout)
    assert plain["update"] != pulled["update"]
    assert plain["num_samples"] == 64
    scaffold = json.loads(run("try", train, "--strategy", "scaffold").stdout)
    assert set(scaffold["update"]) == {"w", "b", "@control/w", "@control/b"}
    personal = json.loads(run("try", train, "--strategy", '{"name": "fedper", "personal": ["b"]}').stdout)
    assert set(personal["update"]) == {"w"}
    part = ("--split", '{"holdout": 0.25}')
    assert json.loads(run("try", train, *part).stdout)["num_samples"] == 48
    held_out = json.loads(run("try", train, *part, "--mode", "evaluate").stdout)
    assert held_out["num_samples"] == 16
    assert "update" not in held_out
    file, text = project / "experiment.toml", (project / "experiment.toml").read_text()
    fields = 'strategy = { name = "fedprox", mu = 5 }\nupdate = { kind = "delta" }\n'
    file.write_text(fields + text.replace("files = ", "split = { holdout = 0.25 }\nfiles = "))
    done = run("try", train)
    described = json.loads(done.stdout)
    assert (described["num_samples"], described["kind"]) == (48, "delta")
    assert 'strategy {"name": "fedprox", "mu": 5' in done.stderr
    assert json.loads(run("try", train, "--mode", "evaluate").stdout)["num_samples"] == 16
    (project / "one.json").write_text('{"data": [{"x": [1, 2], "y": 1}]}')
    assert "experiment.toml: data.split: 1 samples cannot be split" in said(
        run("try", train, "--data", project / "one.json")
    )
    file.write_text('strategy = "fedavgg"\n' + text)
    assert "experiment.toml: " in said(run("try", train))
    file.write_text(text)
    bare = task(project, "return Update(model, num_samples=1)")
    assert "as Update(..., steps=…)" in run("try", bare, "--strategy", "fednova").stderr
    assert "--strategy: " in said(run("try", train, "--strategy", "fedavgg"))
    assert "--strategy: not JSON" in said(run("try", train, "--strategy", "{"))
    assert "--split: holdout" in said(run("try", train, "--split", '{"holdout": 3}'))


def test_a_program_in_another_language(project: Path, tmp_path: Path) -> None:
    """With its own model and data; what the coordinator would refuse is refused here."""
    model, data = tmp_path / "model.safetensors", project / "data" / "1.json"
    save_file({"w": np.zeros(2), "b": np.zeros(())}, model)
    done = run(
        "try", program_path("logreg"), "--model", model, "--data", data, "--hyperparams", '{"lr": 0.5}'
    )
    assert done.returncode == 0, done.stderr
    update: dict[str, Any] = json.loads(done.stdout)
    assert update["metrics"]["accuracy"] > 0.7
    assert "Loaded dataset with 64 samples" in done.stderr
    assert run("try", program_path("logreg"), "--model", model, "--data", data).stdout != done.stdout
    (tmp_path / "echo.wasm").write_bytes(echo())
    silent = run("try", tmp_path / "echo.wasm", "--model", model, "--data", data)
    assert "standard output is not an update" in said(silent)


def test_a_script_ends_with_a_command_that_is_killed(project: Path) -> None:
    file = script(
        project,
        f"{HEAD}@train\ndef fit(*task):\n    import os\n    print('pid', os.getpid(), flush=True)\n    while True:\n        pass\n",
    )
    with subprocess.Popen([*PROPELLER, "try", str(file)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        pid = int(next(line for line in process.stderr if line.startswith("pid ")).removeprefix("pid "))
        process.kill()
        assert process.stderr.read() == ""  # the script held the other end
    wait_until(lambda: has_ended(pid), what="the script ends with the command")


def test_ctrl_c_ends_it(project: Path) -> None:
    file = script(
        project,
        f"{HEAD}@train\ndef fit(*task):\n    print('begun', flush=True)\n    while True:\n        pass\n",
    )
    with subprocess.Popen(
        [*PROPELLER, "try", str(file)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert any(line == "begun\n" for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C at a terminal is for the whole group
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "src/propeller" not in rest


def test_a_run_that_takes_long_says_so_and_what_ends_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(try_program, "_TOLD_AFTER_S", 2.0)
    endless = task(project, "while True:\n    pass")
    assert run_try(endless, NOTHING, Limits(wall_time_s=8)) == 1
    assert capfd.readouterr().err.splitlines()[1:] == [
        "mine.py has run for 2 s, and is in line 6 of mine.py (fit). The limit wall_time_s (--wall-time) ends it after 8 s, Ctrl-C at once.",
        "error: wall_time_s: over the limit of 8 s",
    ]
    slow = task(project, "import time\ntime.sleep(4)\nreturn Update(model, num_samples=1)")
    assert run_try(slow, NOTHING) == 0
    assert "(fit). As plain Python it has no limit of time (--wall-time sets one): Ctrl-C ends it.\n" in (
        capfd.readouterr().err
    )
    (tmp_path / "endless.wasm").write_bytes(
        wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))')
    )
    given = TrialInputs(project / "model.json", project / "data" / "1.json", None, "train")
    (project / "model.json").write_text('{"w": [0, 0], "b": 0}')
    assert run_try(tmp_path / "endless.wasm", given, Limits(wall_time_s=8)) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == (
        f"{tmp_path / 'endless.wasm'} has run for 2 s. The limit wall_time_s (--wall-time, or limits in experiment.toml) "
        "ends it after 8 s, Ctrl-C at once."
    )
    assert lines[-1].startswith("error: wall_time_s: over the limit of 8 s")


def test_what_ends_before_is_not_said_to_run(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_try(project / "train.py", NOTHING) == 0
    assert "has run for" not in capfd.readouterr().err


@pytest.mark.parametrize("form", ["py", "wasm"])
def test_a_strategy_is_tried_on_updates(tmp_path: Path, form: str) -> None:
    source = SOURCES / "clipped_momentum.py"
    program = source if form == "py" else built(source)
    (tmp_path / "base.json").write_text('{"w": [1.0, 2.0]}')
    given: list[Any] = ["--model", tmp_path / "base.json"]
    for name, samples, w in (("a", 1, [3.0, 2.0]), ("b", 3, [1.0, 6.0])):
        update = {"round_id": "r", "proplet_id": name, "num_samples": samples, "update": {"w": w}}
        (tmp_path / f"{name}.json").write_text(json.dumps(update))
        given += ["--update", tmp_path / f"{name}.json"]
    done = run("try", program, "--mode", "aggregate", "--hyperparams", '{"clip": 2.0, "lr": 0.5}', *given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"round_id": "r-try", "state": {"clipped": 1}}
    assert "1 of 2 updates were clipped" in done.stderr
    assert "/out/model.safetensors" in done.stderr
    refused = run("try", program, "--mode", "aggregate", "--hyperparams", '{"clip": 0}', *given[:4])
    assert refused.returncode == 1
    assert re.search(r"clipped_momentum\.py:\d+: ValueError: clip is 0", refused.stderr)


def test_what_an_aggregation_needs(tmp_path: Path) -> None:
    source = SOURCES / "clipped_momentum.py"
    assert "--update FILE" in said(run("try", source, "--mode", "aggregate"))
    base, update = script(tmp_path, '{"w": [1.0, 2.0]}', "base.json"), tmp_path / "a.json"
    update.write_text('{"w": 1}')
    told = said(run("try", source, "--mode", "aggregate", "--model", base, "--update", update))
    assert "a.json: not an update: round_id" in told
    update.write_text('{"round_id": "r", "proplet_id": "p", "num_samples": 1, "update": {"w": [1.0]}}')
    told = said(run("try", source, "--mode", "aggregate", "--model", base, "--update", update))
    assert "a.json: update: tensor 'w'" in told


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import numpy", "ModuleNotFoundError: No module named 'numpy' for programs"),
        ("from ssl import SSLContext", "ModuleNotFoundError: No module named 'ssl' for programs"),
        (
            "import socket\nsocket.create_connection(('127.0.0.1', 9))",
            "PermissionError: socket.getaddrinfo: there is no network for programs",
        ),
        (
            "import subprocess\nsubprocess.run(['true'])",
            "PermissionError: subprocess.Popen: there are no other processes for programs",
        ),
        (
            "import threading\nthreading.Thread(target=print).start()",
            "there are no threads for programs",
        ),
    ],
)
def test_natively_it_has_no_more_than_in_the_sandbox(project: Path, body: str, reason: str) -> None:
    """So that nobody learns it on a device."""
    text = task(project, f"{body}\nreturn Update(model, num_samples=1)")
    tried = run("try", text)
    assert tried.returncode == 1
    assert reason in tried.stderr
    assert 'File "mine.py", line ' in tried.stderr


def test_natively_a_debugger_has_everything(project: Path) -> None:
    text = task(project, "breakpoint()\nreturn Update(model, num_samples=1)")
    tried = propeller("try", str(text), env=ENV, stdin="p 6 * 7\nc\n")
    assert tried.returncode == 0, tried.stderr
    assert "42" in tried.stdout + tried.stderr


def test_files_that_begin_with_a_byte_order_mark_are_read(project: Path) -> None:
    """As some editors of Windows write them."""
    for name in ("train.py", "experiment.toml", "data/1.json"):
        file = project / name
        file.write_text(file.read_text(), encoding="utf-8-sig")
    (project / "m.json").write_text('{"w": [0.0, 0.0], "b": 0.0}', encoding="utf-8-sig")
    built_too = run("build", project / "train.py")
    assert built_too.returncode == 0, built_too.stderr
    for program in ("train.py", "train.wasm"):
        tried = run("try", project / program, "--model", project / "m.json")
        assert tried.returncode == 0, tried.stderr


def test_the_devices_memory_holds_in_a_trial_too(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A program of 6 MiB is refused where the owner gives 5 MiB, which the remedy names, and runs where 16 are given.

    It takes 3 MiB first: more than half of the limit, so that the failure that follows is known to be one of memory.
    """
    program = tmp_path / "grows.wasm"
    program.write_bytes(
        wasmtime.wat2wasm(
            '(module (memory (export "memory") 1) (func (export "_start")'
            " (drop (memory.grow (i32.const 47)))"
            " (if (i32.lt_s (memory.grow (i32.const 48)) (i32.const 0)) (then unreachable))))"
        )
    )
    given = TrialInputs(project / "model.json", project / "data" / "1.json", None, "train")
    (project / "model.json").write_text('{"w": [0, 0], "b": 0}')
    for memory, is_refused in ((5 << 20, True), (16 << 20, False)):
        monkeypatch.setenv("PROPLET_TASK_MEMORY", str(memory))
        assert run_try(program, given) == 1  # it gives no update either way
        told = capfd.readouterr().err
        assert (f"memory_bytes: over the limit of {memory}" in told) is is_refused
        assert ("PROPLET_TASK_MEMORY=BYTES gives a task more memory" in told) is is_refused
    monkeypatch.setenv("PROPLET_TASK_MEMORY", "2GB")
    with pytest.raises(StartError, match="PROPLET_TASK_MEMORY: '2GB' is no number of bytes"):
        run_try(program, given)
