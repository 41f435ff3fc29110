"""The wheel, installed in an empty environment outside the repository: it is complete."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from propeller import __version__
from propeller.wasm.runtimes import runtimes_folder
from support.python_programs import CACHE_HOME, TEMPLATE, built

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": os.environ["PATH"], "HOME": str(cwd), **env},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"propeller-{__version__}-")
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=folder)
    own = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    # A path in a .pth file is searched after the environment's own, and its own .pth files, as of this checkout, are not read.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def test_it_says_its_version(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "propeller", "--version", cwd=tmp_path) == f"propeller {__version__}\n"


def test_it_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "propeller", "demo", cwd=tmp_path, COLUMNS="200")
    assert "all three, federated" in said
    assert "All processes have ended." in said
    source = Path(said.partition("what ran in each sandbox:")[2].split()[0])
    assert source.is_relative_to(installed.parent)
    assert "int main" in source.read_text()


def test_it_makes_a_project_and_tries_it(installed: Path, tmp_path: Path) -> None:
    run(installed / "propeller", "new", "mine", cwd=tmp_path)
    assert '"update"' in run(installed / "propeller", "try", "train.py", cwd=tmp_path / "mine")


def test_it_builds_a_program(installed: Path, tmp_path: Path) -> None:
    """Over the runtime of this checkout: the wheel has all that one is made of, byte for byte, or it would make another."""
    built(TEMPLATE)
    runtimes = sorted(runtimes_folder().glob("*.wasm"))
    run(installed / "propeller", "new", "mine", cwd=tmp_path)
    run(installed / "propeller", "build", "train.py", cwd=tmp_path / "mine", XDG_CACHE_HOME=str(CACHE_HOME))
    assert sorted(runtimes_folder().glob("*.wasm")) == runtimes
    assert (tmp_path / "mine" / "train.wasm").read_bytes().startswith(b"\0asm")
