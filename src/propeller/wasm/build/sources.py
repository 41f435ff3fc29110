"""The source of a program in Python: the script and the modules beside it that it imports, checked as far as it can be read."""

import ast
import keyword
import sys
from collections.abc import Mapping
from pathlib import Path

from propeller.errors import InvalidError
from propeller.functions import FUNCTIONS
from propeller.program.native import AVAILABLE_MODULES, is_provided

ENTRY = "propeller_entry"
"""The module that a component begins with."""

_MARKERS = {"train", "aggregate"}
"""The decorators of what a program is for; one of them must be used."""

_RESERVED_NAMES = {
    "__main__",
    "propeller",
    ENTRY,
    "wit_world",
    "componentize_py_types",
    "componentize_py_runtime",
}
"""Modules that a built program has under these names."""


class BuildError(InvalidError):
    """A script cannot be made a program; the text says where and why."""


_CHANGES = {"setdefault", "update", "pop", "popitem", "clear", "__setitem__", "__delitem__"}
"""What changes a mapping."""


def collect_sources(script: Path, *, native: bool = False) -> dict[str, str]:
    """The script and the modules of its folder that it imports, by file name.

    ``native``: it may import what a device has installed, too.

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
        pending += _sibling_imports(script.parent / f"{module}.py", tree, native=native)
    if not _MARKERS.intersection(functions_in(found)):
        raise BuildError(
            f"{script}: no function is marked with @train: from propeller.program import train, Update "
            "(or with @aggregate, for a strategy)"
        )
    return found


def _parse(file: Path) -> tuple[ast.Module, str]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors begin files with a byte order mark
        return ast.parse(text, str(file)), text
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise BuildError(f"{file}:{error.lineno}: {type(error).__name__}: {error.msg}\n    {line}") from None
    except FileNotFoundError:
        raise BuildError(f"{file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise BuildError(f"{file}: cannot be read: {error}") from None


def _sibling_imports(file: Path, tree: ast.Module, *, native: bool) -> list[str]:
    """The modules beside a file that it imports.

    Raises:
        BuildError: It imports what cannot be in a program. (In a ``try`` or an ``if`` it may: that is seen when it is loaded.)
    """
    optional = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try | ast.If) for inner in ast.walk(node)
    }
    own = []
    for node in ast.walk(tree):
        for first in [name.partition(".")[0] for name in imported_by(node)]:
            provided = is_provided(first) or (native and first in sys.stdlib_module_names)
            if (file.parent / f"{first}.py").is_file() and not provided:
                own.append(first)
            elif not provided and not native and id(node) not in optional:
                raise BuildError(
                    f"{file}:{getattr(node, 'lineno', 1)}: no module {first!r} for programs: {AVAILABLE_MODULES}"
                )
    return own


def imported_by(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def foreign_imports(sources: Mapping[str, str]) -> tuple[str, ...]:
    """The modules that sources import and that are neither theirs, nor Python's, nor this package's; in order."""
    own = {name.removesuffix(".py") for name in sources} | sys.stdlib_module_names | {"propeller"}
    nodes = [node for text in sources.values() for node in ast.walk(ast.parse(text))]
    found = {name for node in nodes for name in imported_by(node) if name.partition(".")[0] not in own}
    return tuple(sorted(found))


def sets_variables(sources: Mapping[str, str]) -> bool:
    """Whether sources set variables of the environment: some libraries are set up so before they are imported."""
    return any(_sets_variable(node) for text in sources.values() for node in ast.walk(ast.parse(text)))


def _sets_variable(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(value=changed, ctx=ast.Store() | ast.Del()) | ast.AugAssign(target=changed):
            return _is_environment(changed)
        case ast.Call(func=ast.Attribute(value=changed, attr=name)):
            return name in {"putenv", "unsetenv"} or (name in _CHANGES and _is_environment(changed))
        case ast.Call(func=ast.Name(id=name)):
            return name in {"putenv", "unsetenv"}
    return False


def _is_environment(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in {"environ", "environb"}


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
