"""componentize-py, called: CPython and some modules, run to the end of their import and kept as one component."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import propeller
from propeller.program.native import AVAILABLE_MODULES
from propeller.wasm.build.sources import ENTRY, BuildError

FOLDER = Path(__file__).parent
_LIBRARY = Path(propeller.__file__).parent
_GUEST_MODULES = ("errors.py", "functions.py", "metrics.py", "program/**/*.py", "tensors/**/*.py")
"""What a program has of this library."""

_HOST_MODULES = "tensors/numpy_*.py"
"""Of these, what it cannot load: there is no NumPy."""

_COMMAND = "import sys; from componentize_py import script; sys.exit(script())"
_TIMEOUT_S = 300


def guest_modules() -> dict[str, str]:
    """The modules of this library that go into a program, by their path in it."""
    host = set(_LIBRARY.glob(_HOST_MODULES))
    files = sorted(file for pattern in _GUEST_MODULES for file in _LIBRARY.glob(pattern) if file not in host)
    return {file.relative_to(_LIBRARY).as_posix(): file.read_text() for file in files}


def what_makes_one() -> list[str]:
    """All that a component is made of, but the program: the tool's version, this library, the interface and the entries.

    Raises:
        BuildError: the tool is not installed.
    """
    parts = [_version()]
    parts += [f"{name}\0{text}" for name, text in guest_modules().items()]
    for pattern in ("**/*.wit", "*.in", "library.py"):
        parts += [f"{file.relative_to(FOLDER)}\0{file.read_text()}" for file in sorted(FOLDER.glob(pattern))]
    return parts


def _version() -> str:
    try:
        return importlib.metadata.version("componentize-py")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(
            "building programs needs componentize-py: pip install 'propeller[build]' (in a clone: make setup)"
        ) from None


def componentize(
    entry: str, modules: Mapping[str, str], folder: Path, *, host_tensors: bool, named: Path | str
) -> bytes:
    """A component of an entry module and others beside it.

    Args:
        entry: the text of the module that is imported, and whose ``Run`` is the command.
        modules: texts of the program's own modules, by file name.
        folder: to work in.
        host_tensors: whether arrays are the host's.
        named: what errors call it: the script's path.

    Raises:
        BuildError: a module cannot be imported, or the tool fails.
    """
    path, component = folder / "path", folder / "program.wasm"
    for module, text in {"__init__.py": "", **guest_modules()}.items():
        file = path / "propeller" / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    machine = FOLDER / ("host.py.in" if host_tensors else "plain.py.in")
    (path / "propeller" / "machine.py").write_text(machine.read_text())
    for name, text in {**modules, f"{ENTRY}.py": entry}.items():
        (path / name).write_text(text, encoding="utf-8")
    world = "tensor-program" if host_tensors else "plain-program"
    command = [sys.executable, "-c", _COMMAND, "--wit-path", str(FOLDER / "wit"), "--world", world]
    command += ["componentize", ENTRY, "--python-path", str(path), "--output", str(component)]
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            cwd=folder,
            env={**inherited, "RUST_BACKTRACE": "0"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"{named}: not built after {_TIMEOUT_S} s: does it do its work when it is imported?"
        ) from None
    if done.returncode != 0 or not component.is_file():
        raise BuildError(_explain_failure(Path(named), done.stderr + done.stdout))
    return component.read_bytes()


def _explain_failure(script: Path, output: str) -> str:
    """The Python error in what componentize-py printed, with the paths that the user knows."""
    head, mark, rest = output.rpartition("Traceback (most recent call last):\n")
    found = re.match(r"(?:  .*\n)*\S.*", rest)
    if not mark or found is None:
        return f"{script}: componentize-py failed: {(head + rest).strip()[-1000:]}"
    own = re.sub(rf'  File "/\d+/(?:{ENTRY}|propeller/).*\n(?:    .*\n)*', "", found[0])
    text = re.sub(r'File "/\d+/(.*?)"', lambda file: f'File "{script.parent / file[1]}"', own).rstrip()
    text = f"{script} cannot be loaded:\n{mark if own.startswith('  File') else ''}{text}"
    return (
        f"{text}\nPrograms have no other modules: {AVAILABLE_MODULES}"
        if "ModuleNotFoundError" in text
        else text
    )
