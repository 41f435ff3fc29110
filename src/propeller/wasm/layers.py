"""Programs that are data over a runtime: a Wasm file of custom sections alone, which names the runtime by its digest.

For whoever passes programs on it is a program like any other, of some KB; who runs it needs the runtime beside it.
"""

import base64
from dataclasses import dataclass

from propeller.digests import is_digest
from propeller.wasm.sections import read_name, read_sections, write_number

HEADER = b"\0asm\x01\0\0\0"
RUNTIME_SECTION, CODE_SECTION = "propeller.runtime", "propeller.code"
_CUSTOM = 0
_DIGEST_BYTES = 71

HEAD_BYTES = 128
"""Of a file: enough to see whether it is one."""

INPUT_FILE = ".program"
"""In ``/in`` of its task: the code, if it is long."""

INPUT_VARIABLE, IN_FILE = "PROPELLER_PROGRAM", "file"
"""The code in base64, if it is short, as a task that opens no file is milliseconds quicker; or that it is in the file."""

_MAX_VARIABLE_BYTES = 128 * 1024


@dataclass(frozen=True)
class Layer:
    """A program over a runtime: the runtime's digest, and what it is given."""

    runtime: str
    code: bytes

    def to_wasm(self) -> bytes:
        """The file."""
        return HEADER + _section(RUNTIME_SECTION, self.runtime.encode()) + _section(CODE_SECTION, self.code)


def inputs_of(code: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """How a task of a runtime is given a layer's code: variables, and files in ``/in``. The variable is always there, so that nobody else's counts."""
    if len(code) <= _MAX_VARIABLE_BYTES:
        return {INPUT_VARIABLE: base64.b64encode(code).decode()}, {}
    return {INPUT_VARIABLE: IN_FILE}, {INPUT_FILE: code}


def names_runtime(head: bytes) -> bool:
    """Whether a Wasm file's first ``HEAD_BYTES`` name a runtime: it is a layer then, or no program at all."""
    return head.startswith(_START)


def read_layer(wasm: bytes) -> Layer | None:
    """The layer that a Wasm file is; ``None`` if it is none: a layer has custom sections alone, the runtime's first, and the code's."""
    if not names_runtime(wasm):
        return None
    found: dict[str, bytes] = {}
    try:
        for kind, content in read_sections(wasm):
            name, at = read_name(content, 0) if kind == _CUSTOM else ("", 0)
            if not name or name in found:
                return None
            found[name] = content[at:]
    except IndexError:
        return None
    runtime = found[RUNTIME_SECTION].decode(errors="replace")
    return Layer(runtime, found[CODE_SECTION]) if CODE_SECTION in found and is_digest(runtime) else None


def runtime_of(wasm: bytes) -> str | None:
    """The digest of the runtime that a program needs; ``None`` if it is a program by itself."""
    layer = read_layer(wasm)
    return None if layer is None else layer.runtime


def _section(name: str, content: bytes) -> bytes:
    body = write_number(len(name)) + name.encode() + content
    return bytes([_CUSTOM]) + write_number(len(body)) + body


_START = HEADER + _section(RUNTIME_SECTION, bytes(_DIGEST_BYTES))[:-_DIGEST_BYTES]
