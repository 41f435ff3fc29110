"""Native programs for tests, and interpreters that run them."""

import contextlib
import functools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from propeller.digests import digest_of
from propeller.native.interpreter import Interpreter
from propeller.native_program import NativeProgram
from propeller.wasm.program_run import Limits, ProgramRun, RunOutcome, StateFolder
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.task_runs import OnStderr

MODEL = b'{"w": [1.0, 2.0]}'
DATA = b'{"data": [{"x": [1.0, 2.0], "y": 1}, {"x": [3.0, 4.0], "y": 0}]}'
ENVIRONMENT = {
    "ROUND_ID": "r-1",
    "PROPLET_ID": "p-1",
    "MODEL_URI": "fl/models/global_model_v0",
    "FL_MODE": "train",
    "HYPERPARAMS": "{}",
}

JAX = """
import jax
x = jax.random.normal(jax.random.key(0), (200, 2))
y = x @ jax.numpy.array([2.0, -1.0])
slope = jax.jit(jax.grad(lambda w: ((x @ w - y) ** 2).mean()))
w = jax.numpy.array(model["w"], dtype="float32")
for _ in range(100):
    w = w - 0.2 * slope(w)
return Update({"w": w}, 200)
"""
"""The body of a task that finds the line through its data with JAX."""


@functools.cache
def interpreter() -> Interpreter:
    """The one that runs the tests, which has NumPy and scikit-learn, or the one that ``PROPELLER_TEST_NATIVE_PYTHON`` names."""
    return Interpreter.find(Path(os.environ.get("PROPELLER_TEST_NATIVE_PYTHON") or sys.executable))


@functools.cache
def compile_libraries() -> None:
    """Have the bytecode of scikit-learn kept: what an installer does, unless it is told not to, and a confined task cannot."""
    code = "import sklearn.linear_model, sklearn.metrics"
    subprocess.run([interpreter().command, "-I", "-c", code], env={}, check=True)


def training(body: str, before: str = "") -> str:
    """A script that trains: ``body`` is the function's, ``before`` stands before it."""
    lines = "\n    ".join(body.strip().splitlines())
    return f"{before}\nfrom propeller.program import Update, evaluate, train\n\n\n@train\ndef fit(model, data, hyperparams, ctx):\n    {lines}\n"


async def run_native(
    sandbox: Sandbox,
    script: str,
    *,
    limits: Limits | None = None,
    env: dict[str, str] | None = None,
    state: StateFolder | None = None,
    on_stderr: OnStderr | None = None,
    id_: str = "task",
    model: bytes = MODEL,
    dependencies: tuple[str, ...] = (),
    imports: tuple[str, ...] = (),
) -> RunOutcome:
    """Run a script as a native program."""
    content = NativeProgram("program", {"program": script}, ("train",), "", dependencies, imports).encode()
    digest = digest_of(content)
    await sandbox.keep(digest, content)
    run = ProgramRun(
        id_,
        digest,
        env={**ENVIRONMENT, **(env or {})},
        files={"model.json": model, "dataset.json": DATA},
        limits=limits or Limits(wall_time_s=60),
        state=state,
    )
    return await sandbox.run(run, on_stderr)


def python_with(folder: Path, **packages: str) -> Interpreter:
    """The tests' interpreter with packages of this text beside its own."""
    own = interpreter().command
    asked = "import sysconfig, json, numpy, os; print(json.dumps([sysconfig.get_path('purelib'), os.path.dirname(os.path.dirname(numpy.__file__))]))"
    found = json.loads(subprocess.run([own, "-I", "-c", asked], check=True, capture_output=True).stdout)
    subprocess.run([own, "-m", "venv", "--without-pip", folder], check=True)
    [installed] = folder.glob("lib/python*/site-packages")
    (installed / "others.pth").write_text("\n".join(found))
    for name, text in packages.items():
        (installed / f"{name}.py").write_text(text)
        (installed / f"{name}-1.0.dist-info").mkdir()
        (installed / f"{name}-1.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        (installed / f"{name}-1.0.dist-info" / "top_level.txt").write_text(f"{name}\n")
    return Interpreter.find(folder / "bin" / "python")


@contextlib.contextmanager
def python_that_all_may_read() -> Iterator[Path]:
    """A copy of this Python with its NumPy, where every user can reach it: what a device's owner installs for a proplet that is root."""
    folder = Path(tempfile.mkdtemp(prefix="pp-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        base, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "bin").mkdir(mode=0o755)
        program = Path(sys.executable).resolve().read_bytes()
        # Where it has libpython beside it, its file names the folder of that: it is now this one.
        there, here = f"{base}/lib\0".encode(), f"{folder}/lib\0".encode()
        (folder / "bin" / "python").write_bytes(program.replace(there, here.ljust(len(there), b"\0")))
        (folder / "bin" / "python").chmod(0o755)
        leave_out = shutil.ignore_patterns(
            "test", "tests", "idlelib", "site-packages", "__pycache__", "config-*"
        )
        _copy(base / "lib" / version, folder / "lib" / version, leave_out)
        for library in (base / "lib").glob("libpython*"):
            _link(str(library), str(folder / "lib" / library.name))
        import numpy as np

        packages = folder / "lib" / version / "site-packages"
        packages.mkdir()
        (packages.parent / "dist-packages").symlink_to(packages)  # what Debian's Python calls it
        installed = Path(np.__file__).parents[1]
        for name in ("numpy", "numpy.libs", f"numpy-{np.__version__}.dist-info"):
            if (installed / name).is_dir():
                _copy(installed / name, packages / name, shutil.ignore_patterns("tests"))
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(path.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
        yield folder / "bin" / "python"
    finally:
        shutil.rmtree(folder)


def _copy(source: Path, target: Path, leave_out: object) -> None:
    shutil.copytree(source, target, ignore=leave_out, copy_function=_link, symlinks=True)  # type: ignore[arg-type]


def _link(source: str, target: str) -> None:
    try:
        if not Path(source).stat().st_mode & stat.S_IROTH:
            raise PermissionError
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
        Path(target).chmod(0o755)
