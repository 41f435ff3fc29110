"""Python's standard library in the shared runtime: what programs use most is loaded, the rest is there as compiled code.

No files are there when a program runs. To have all of it loaded would triple the memory that each task begins with. This module runs in the
guest, as ``propeller_library``, before anything else is loaded.
"""

import importlib
import importlib.util
import marshal
import sys
import zlib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_LOADED = [
    "abc",
    "argparse",
    "array",
    "base64",
    "bisect",
    "collections",
    "collections.abc",
    "contextlib",
    "contextvars",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "gc",
    "hashlib",
    "heapq",
    "io",
    "itertools",
    "json",
    "linecache",
    "logging",
    "math",
    "numbers",
    "operator",
    "os",
    "pathlib",
    "pprint",
    "random",
    "re",
    "statistics",
    "string",
    "struct",
    "sys",
    "textwrap",
    "time",
    "traceback",
    "types",
    "typing",
    "uuid",
    "warnings",
    "weakref",
    "zlib",
]
"""What costs a program nothing to import."""

_NOT_FOR_PROGRAMS = {
    "antigravity", "bz2", "ctypes", "curses", "doctest", "ensurepip", "idlelib", "lib2to3", "lzma", "pdb", "pty", "pydoc", "pydoc_data", "ssl",
    "test", "this", "tkinter", "tty", "turtle", "turtledemo", "venv",
}  # fmt: skip
_LEFT_OUT = {"__main__", "__pycache__", "test", "tests", "_pyrepl", "site-packages"}
"""Tools, games, tests, and what needs something that is not here."""


class Library(Loader, MetaPathFinder):
    """Loads modules from their compiled code. Beside those that are built into Python these are all that there are."""

    def __init__(self) -> None:
        """Compile what is in the folders of ``sys.path``."""
        self._modules: dict[str, tuple[str, bytes]] = {}
        """A module's file and code, by its name."""
        for folder in map(Path, sys.path):
            self._add(folder, "")

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importers do."""
        if name not in self._modules:
            return None
        file, _code = self._modules[name]
        return importlib.util.spec_from_loader(
            name,
            self,
            origin=file,
            is_package=file.endswith("__init__.py"),
        )

    def create_module(self, _spec: ModuleSpec) -> None:
        """As usual."""

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code."""
        file, code = self._modules[module.__name__]
        module.__file__ = file
        exec(marshal.loads(zlib.decompress(code)), module.__dict__)  # noqa: S102, S302 - Python's own
        if module.__name__ == "asyncio.selector_events":
            _do_without_sockets(module.BaseSelectorEventLoop)

    def get_code(self, name: str) -> CodeType:
        """As loaders do, for ``runpy``."""
        code: CodeType = marshal.loads(zlib.decompress(self._modules[name][1]))  # noqa: S302
        return code

    def _add(self, folder: Path, package: str) -> None:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = package + file.name.removesuffix(".py")
            if file.name in _LEFT_OUT or name in _NOT_FOR_PROGRAMS:
                continue
            if file.is_dir() and (file / "__init__.py").is_file() and self._is_wanted(name):
                self._keep(name, file / "__init__.py")
                self._add(file, f"{name}.")
            elif file.suffix == ".py" and file.name != "__init__.py" and self._is_wanted(name):
                self._keep(name, file)

    def _is_wanted(self, name: str) -> bool:
        first = name.partition(".")[0]
        is_of_python = first in sys.stdlib_module_names or first.startswith("_sysconfigdata")
        return is_of_python and name not in self._modules

    def _keep(self, name: str, file: Path) -> None:
        try:
            code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # files that show how not to write them
            return
        self._modules[name] = str(file), zlib.compress(marshal.dumps(code), 9)


def _do_without_sockets(loop: Any) -> None:
    """Have event loops without the pair of sockets by which other threads and signals wake them: there are none of these."""

    def make_self_pipe(self: Any) -> None:
        self._ssock = self._csock = None

    loop._make_self_pipe = make_self_pipe  # noqa: SLF001 - there is no public way
    loop._close_self_pipe = lambda _self: None  # noqa: SLF001


def load() -> None:
    """Load what programs use most, and have the rest found."""
    library = Library()
    for name in _LOADED:
        importlib.import_module(name)
    sys.meta_path.insert(0, library)
