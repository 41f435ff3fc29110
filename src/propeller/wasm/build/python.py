"""From a Python script to a component, by componentize-py: CPython, the script and what it imports, in one file.

Only what is imported while the script is loaded goes into it; nothing of this machine's packages does.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import propeller
from propeller.digests import digest_of
from propeller.errors import InvalidError
from propeller.functions import FUNCTIONS, with_functions
from propeller.process.files import remove_left_over, trim_folder, write_durably

_FOLDER = Path(__file__).parent
_LIBRARY = Path(propeller.__file__).parent
_GUEST_MODULES = ("errors.py", "functions.py", "metrics.py", "program/*.py", "tensors/**/*.py")
"""What a program has of this library."""

_HOST_MODULES = "tensors/numpy_*.py"
"""Of these, what it cannot load: there is no NumPy."""

_ENTRY = "propeller_entry"
_COMPONENTIZE_PY = "import sys; from componentize_py import script; sys.exit(script())"
_BUILD_TIMEOUT_S = 300
_AVAILABLE_MODULES = (
    "they have Python's standard library, propeller.program (arrays: propeller.program.tensors), "
    "and modules of your own in files beside the script"
)
_MISSING_STDLIB = {"bz2", "ctypes", "curses", "lzma", "readline", "ssl", "tkinter"}
"""Modules of the standard library that WASI's Python lacks."""

_MARKERS = {"train", "aggregate"}
"""The decorators of what a program is for; one of them must be used."""

_RESERVED_NAMES = {
    "__main__",
    "propeller",
    _ENTRY,
    "wit_world",
    "componentize_py_types",
    "componentize_py_runtime",
}
"""Modules that a built program has under these names."""

MAX_CACHED_BYTES = 1 << 30
"""Of all programs in the cache together; one takes about 20 MB."""

_BUILD_PREFIX = "building-"
_ABANDONED_S = 3600.0
"""A build that is older than this was killed."""


class BuildError(InvalidError):
    """A script cannot be made a program; the text says where and why."""


@dataclass(frozen=True)
class BuildResult:
    """A built program: its file, its digest, and whether it came from the cache."""

    path: Path
    digest: str
    size: int
    cached: bool


def build(script: Path, output: Path, *, host_tensors: bool = True, cache: Path | None = None) -> BuildResult:
    """Build a script that marks a function with ``propeller.program.train``, or with ``aggregate``.

    Args:
        script: A ``.py`` file; the modules that it imports from its folder go along.
        output: Where the component goes; written whole or not at all.
        host_tensors: False makes a program whose tensors are plain Python, which any WASI 0.2 runtime runs.
        cache: Where built programs are kept by content (default: the user's cache folder).

    Raises:
        BuildError: The script has an error, imports what is not there, or registers nothing; or componentize-py is missing.
    """
    sources = _collect_sources(script)
    if output.is_dir():
        raise BuildError(f"{output} is a folder: name the file to write")
    folder = (
        cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "propeller" / "programs"
    )
    key, programs = _cache_key(script.stem, sources, host_tensors=host_tensors), BuildCache(folder)
    content = programs.get(key)
    cached = content is not None
    if content is None:
        with programs.build_folder() as workspace:
            component = workspace / "program.wasm"
            _componentize(script, sources, workspace, component, host_tensors=host_tensors)
            content = with_functions(component.read_bytes(), functions_in(sources))
        programs.add(key, content)
    try:
        write_durably(output, content)
    except OSError as error:
        raise BuildError(f"{output}: cannot be written: {error.strerror}") from None
    return BuildResult(output, digest_of(content), len(content), cached)


class BuildCache:
    """A folder of built programs, kept under what they were made of, which several processes may share."""

    def __init__(self, folder: Path, max_bytes: int = MAX_CACHED_BYTES) -> None:
        """Make the folder if it is missing, and remove what builds left that were killed."""
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        for abandoned in folder.glob(f"{_BUILD_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if abandoned.stat().st_mtime < time.time() - _ABANDONED_S:
                    shutil.rmtree(abandoned, ignore_errors=True)

    def get(self, key: str) -> bytes | None:
        """A program, if it is here; it counts as used now."""
        try:
            content = self._path(key).read_bytes()
            os.utime(self._path(key))
        except FileNotFoundError:
            return None
        return content

    def add(self, key: str, program: bytes) -> None:
        """Keep a program; those used longest ago make room for it."""
        write_durably(self._path(key), program)
        trim_folder(self._folder.glob("*.wasm"), self._max_bytes, keep=[self._path(key)])

    @contextlib.contextmanager
    def build_folder(self) -> Iterator[Path]:
        """A folder to build in, which is removed afterwards."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=_BUILD_PREFIX) as folder:
            yield Path(folder)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.wasm"


def _collect_sources(script: Path) -> dict[str, str]:
    """The script and the modules of its folder that it imports, by file name.

    Raises:
        BuildError: One cannot be read or is not Python.
    """
    name = script.stem
    if script.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise BuildError(f"{script}: give a .py file whose name is a Python name, such as train.py")
    if name in sys.stdlib_module_names | _RESERVED_NAMES:
        raise BuildError(
            f"{script}: {name!r} is a module that the program needs itself; call the script something else"
        )
    found: dict[str, str] = {}
    pending = [name]
    while pending:
        module = pending.pop()
        if f"{module}.py" in found:
            continue
        tree, found[f"{module}.py"] = _parse(script.parent / f"{module}.py")
        pending += _sibling_imports(script.parent / f"{module}.py", tree)
    if not _MARKERS.intersection(functions_in(found)):
        raise BuildError(
            f"{script}: no function is marked with @train: from propeller.program import train, Update "
            "(or with @aggregate, for a strategy)"
        )
    return found


def _parse(file: Path) -> tuple[ast.Module, str]:
    try:
        text = file.read_text(encoding="utf-8")
        return ast.parse(text, str(file)), text
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise BuildError(f"{file}:{error.lineno}: {type(error).__name__}: {error.msg}\n    {line}") from None
    except FileNotFoundError:
        raise BuildError(f"{file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise BuildError(f"{file}: cannot be read: {error}") from None


def _sibling_imports(file: Path, tree: ast.Module) -> list[str]:
    """The modules beside a file that it imports.

    Raises:
        BuildError: It imports what cannot be in a program. (In a ``try`` or an ``if`` it may: that is seen when it is loaded.)
    """
    optional = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try | ast.If) for inner in ast.walk(node)
    }
    own = []
    for node in ast.walk(tree):
        for first in [name.partition(".")[0] for name in _imported(node)]:
            provided = first in sys.stdlib_module_names | {"propeller"} and first not in _MISSING_STDLIB
            if (file.parent / f"{first}.py").is_file() and not provided:
                own.append(first)
            elif not provided and id(node) not in optional:
                raise BuildError(
                    f"{file}:{getattr(node, 'lineno', 1)}: no module {first!r} for programs: {_AVAILABLE_MODULES}"
                )
    return own


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def functions_in(sources: Mapping[str, str]) -> list[str]:
    """The decorators that a program uses: one that is not among them marks nothing in it."""
    nodes = [node for text in sources.values() for node in ast.walk(ast.parse(text))]
    return [name for name in FUNCTIONS if any(_mentions(node, name) for node in nodes)]


def _mentions(node: ast.AST, marker: str) -> bool:
    """Whether it uses a decorator, under this name or another one."""
    return (
        (isinstance(node, ast.Name) and node.id == marker)
        or (isinstance(node, ast.Attribute) and node.attr == marker)
        or (
            isinstance(node, ast.alias)
            and node.name in {marker, "*"}
            and (node.name == "*" or bool(node.asname))
        )
    )


def _cache_key(name: str, sources: dict[str, str], *, host_tensors: bool) -> str:
    """What makes a build: the script, this library, the interface and the tool."""
    parts = [name, str(host_tensors), _version()]
    parts += [f"{name}\0{text}" for name, text in _guest_modules().items()]
    for pattern in ("**/*.wit", "*.in"):
        parts += [
            f"{file.relative_to(_FOLDER)}\0{file.read_text()}" for file in sorted(_FOLDER.glob(pattern))
        ]
    parts += [f"{file}\0{text}" for file, text in sorted(sources.items())]
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()


def _guest_modules() -> dict[str, str]:
    """The modules of this library that go into a program, by their path in it."""
    host = set(_LIBRARY.glob(_HOST_MODULES))
    files = sorted(file for pattern in _GUEST_MODULES for file in _LIBRARY.glob(pattern) if file not in host)
    return {file.relative_to(_LIBRARY).as_posix(): file.read_text() for file in files}


def _version() -> str:
    try:
        return importlib.metadata.version("componentize-py")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(
            "building programs needs componentize-py: pip install 'propeller[build]' (in a clone: make setup)"
        ) from None


def _componentize(
    script: Path, sources: dict[str, str], folder: Path, component: Path, *, host_tensors: bool
) -> None:
    path = folder / "path"
    for module, text in {"__init__.py": "", **_guest_modules()}.items():
        file = path / "propeller" / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name, text in sources.items():
        (path / name).write_text(text, encoding="utf-8")
    imported = sorted(
        {name for text in sources.values() for node in ast.walk(ast.parse(text)) for name in _imported(node)}
    )
    entry = (_FOLDER / "entry.py.in").read_text().replace("SOURCES = {}", f"SOURCES = {sources!r}")
    machine = "host.py.in" if host_tensors else "plain.py.in"
    (path / "propeller" / "machine.py").write_text((_FOLDER / machine).read_text())
    entry = (
        f"from propeller.program.rehearsal import rehearse\n\nrehearse()\nimport propeller.machine\n{entry}"
    )
    entry += f"\n\nimport {script.stem}\n\ncheck_registered()\ninclude({imported!r})\n"
    (path / f"{_ENTRY}.py").write_text(entry, encoding="utf-8")
    world = "tensor-program" if host_tensors else "plain-program"
    command = [
        sys.executable,
        "-c",
        _COMPONENTIZE_PY,
        "--wit-path",
        str(_FOLDER / "wit"),
        "--world",
        world,
        "componentize",
    ]
    command += [_ENTRY, "--python-path", str(path), "--output", str(component)]
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            command,
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            cwd=folder,
            env={**inherited, "RUST_BACKTRACE": "0"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"{script}: not built after {_BUILD_TIMEOUT_S} s: does it do its work when it is imported?"
        ) from None
    if done.returncode != 0 or not component.is_file():
        raise BuildError(_explain_failure(script, done.stderr + done.stdout))


def _explain_failure(script: Path, output: str) -> str:
    """The Python error in what componentize-py printed, with the paths that the user knows."""
    head, mark, rest = output.rpartition("Traceback (most recent call last):\n")
    found = re.match(r"(?:  .*\n)*\S.*", rest)
    if not mark or found is None:
        return f"{script}: componentize-py failed: {(head + rest).strip()[-1000:]}"
    own = re.sub(rf'  File "/\d+/(?:{_ENTRY}|propeller/).*\n(?:    .*\n)*', "", found[0])
    text = re.sub(r'File "/\d+/(.*?)"', lambda file: f'File "{script.parent / file[1]}"', own).rstrip()
    text = f"{script} cannot be loaded:\n{mark if own.startswith('  File') else ''}{text}"
    return (
        f"{text}\nPrograms have no other modules: {_AVAILABLE_MODULES}"
        if "ModuleNotFoundError" in text
        else text
    )
