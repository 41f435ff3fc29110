"""A native program: Python source that a device's own interpreter runs, with its own libraries, and what it requires of both.

The file is one JSON object, so that a person can read what is signed and run: the name of its ``script``, the texts of ``modules`` by their
names, ``functions``, ``requires_python`` and ``dependencies`` as the script's metadata has them (PEP 723). Standard library only: the device's interpreter reads it, too.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from typing import Any, Self

from propeller.errors import InvalidError
from propeller.functions import FUNCTIONS

FORMAT = "propeller.native.v1"
HEAD = b'{"format": "propeller.native.v1", '
"""What every native program begins with, and no Wasm program."""

NATIVE_ENDING = ".native"
"""Of the names of files with native programs."""

MAX_DEPENDENCIES = 64
MAX_REQUIREMENT_CHARACTERS = 256
MAX_IMPORTS = 256

_TYPE = "script"
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""A block of metadata in a script (PEP 723, "Specification")."""


class NativeProgramError(InvalidError):
    """A file is no native program, or a script's metadata has a mistake; the text says which."""


@dataclass(frozen=True)
class NativeProgram:
    """What the file has.

    Attributes:
        script: the name of the module that is loaded.
        modules: texts by name, the script's among them.
        functions: the modes of tasks that it has a function for.
        requires_python: a specifier of versions, or empty.
        dependencies: of distributions (PEP 508), such as ``scikit-learn>=1.4``.
        imports: the modules that it imports and does not have, which a device may import ahead of its tasks.
    """

    script: str
    modules: dict[str, str]
    functions: tuple[str, ...] = ()
    requires_python: str = ""
    dependencies: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The file: the same bytes for the same program."""
        fields = {
            "format": FORMAT,
            "script": self.script,
            "requires_python": self.requires_python,
            "dependencies": list(self.dependencies),
            "functions": list(self.functions),
            "imports": list(self.imports),
            "modules": dict(sorted(self.modules.items())),
        }
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a file.

        Raises:
            NativeProgramError: it is none; the text names the field.
        """
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise NativeProgramError(f"not a native program: {error!s:.200}") from None
        if not content.startswith(HEAD):
            raise NativeProgramError(f"not a native program: it does not begin with {HEAD.decode()}")
        modules = fields.get("modules")
        if not isinstance(modules, dict) or not all(isinstance(text, str) for text in modules.values()):
            raise NativeProgramError("modules: must be an object of texts by name")
        if not all(name.isidentifier() for name in modules):
            raise NativeProgramError("modules: a name is no Python name")
        script, python = fields.get("script"), fields.get("requires_python")
        if not isinstance(script, str) or script not in modules:
            raise NativeProgramError("script: must be the name of a module that is there")
        functions = [name for name in _texts(fields, "functions") if name in FUNCTIONS]
        requires_python, dependencies = _requirements(python or "", _texts(fields, "dependencies"))
        imports = _texts(fields, "imports")
        if len(imports) > MAX_IMPORTS or not all(map(_is_module, imports)):
            raise NativeProgramError(f"imports: must be at most {MAX_IMPORTS} names of modules")
        return cls(script, modules, tuple(functions), requires_python, dependencies, tuple(imports))


@dataclass(frozen=True)
class ScriptMetadata:
    """What a script's metadata says: whether it is a native program, and what that requires."""

    native: bool = False
    requires_python: str = ""
    dependencies: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a script's metadata; without any, it is not native and requires nothing.

        Raises:
            NativeProgramError: it has a mistake; the text names the field.
        """
        blocks = [match for match in _BLOCK.finditer(text) if match["type"] == _TYPE]
        if not blocks:
            return cls()
        if len(blocks) > 1:
            raise NativeProgramError("the script has more than one block of metadata (# /// script)")
        content = "".join(
            line[2:] if line.startswith("# ") else line[1:]
            for line in blocks[0]["content"].splitlines(keepends=True)
        )
        try:
            fields = tomllib.loads(content)
        except ValueError as error:
            raise NativeProgramError(f"the script's metadata (# /// script) is not TOML: {error}") from None
        own = fields.get("tool", {}).get("propeller", {}) if isinstance(fields.get("tool", {}), dict) else {}
        if not isinstance(own, dict) or not own.keys() <= {"native"}:
            raise NativeProgramError("tool.propeller: has the field native alone")
        native = own.get("native", False)
        if not isinstance(native, bool):
            raise NativeProgramError("tool.propeller.native: must be true or false")
        python = fields.get("requires-python", "")
        return cls(native, *_requirements(python, _texts(fields, "dependencies")))


def is_native(content: bytes) -> bool:
    """Whether a file, or its first bytes, are those of a native program."""
    return content.startswith(HEAD)


def _texts(fields: Any, name: str) -> list[str]:
    found = fields.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise NativeProgramError(f"{name}: must be a list of texts")
    return found


def _is_module(name: str) -> bool:
    return len(name) <= MAX_REQUIREMENT_CHARACTERS and all(map(str.isidentifier, name.split(".")))


def _requirements(python: Any, dependencies: list[str]) -> tuple[str, tuple[str, ...]]:
    """Both within their bounds; what they say is not looked at here."""
    if not isinstance(python, str) or len(python) > MAX_REQUIREMENT_CHARACTERS:
        raise NativeProgramError(
            f"requires-python: must be a text of at most {MAX_REQUIREMENT_CHARACTERS} characters"
        )
    if len(dependencies) > MAX_DEPENDENCIES:
        raise NativeProgramError(f"dependencies: at most {MAX_DEPENDENCIES}")
    if long := [one for one in dependencies if len(one) > MAX_REQUIREMENT_CHARACTERS]:
        raise NativeProgramError(
            f"dependencies: {long[0][:40]!r}… has more than {MAX_REQUIREMENT_CHARACTERS} characters"
        )
    return python, tuple(dependencies)
