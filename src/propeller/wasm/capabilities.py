"""What a program can do, by what its file imports: a program has no other way to reach anything outside of itself.

What it imports it may use, and need not; what it does not import it cannot use. The sandbox gives no network to any.
"""

from collections.abc import Iterable
from enum import StrEnum

from propeller.native_program import is_native
from propeller.wasm.sections import HEADER_BYTES, read_name, read_number, read_sections


class Capability(StrEnum):
    """Something outside of a program."""

    CLOCK = "clock"
    RANDOM = "random"
    FILES = "files"
    NETWORK = "network"
    TENSORS = "tensors"
    NATIVE = "native"
    OTHER = "other"


EXPLAINED = {
    Capability.CLOCK: "read the time",
    Capability.RANDOM: "get random numbers",
    Capability.FILES: "read and write files (its own folder, if the sandbox gives one)",
    Capability.NETWORK: "open connections (no sandbox of ours gives any)",
    Capability.TENSORS: "compute with the host's tensors",
    Capability.NATIVE: "run Python with the device's own libraries",
    Capability.OTHER: "call what is none of these",
}

_OF_NATIVE = frozenset({Capability.NATIVE, Capability.CLOCK, Capability.RANDOM, Capability.FILES})

_INTERFACES = (
    ("wasi:clocks/", Capability.CLOCK),
    ("wasi:random/", Capability.RANDOM),
    ("wasi:filesystem/", Capability.FILES),
    ("wasi:sockets/", Capability.NETWORK),
    ("wasi:http/", Capability.NETWORK),
    ("propeller:program/tensors", Capability.TENSORS),
    ("wasi:cli/", None),  # its arguments, environment and standard streams, which every program has
    ("wasi:io/", None),
)
"""What the interfaces are for that components import."""

_FUNCTIONS = (
    ("clock_", Capability.CLOCK),
    ("random_", Capability.RANDOM),
    ("path_", Capability.FILES),
    ("sock_", Capability.NETWORK),
)
"""What functions of ``wasi_snapshot_preview1`` are for, by how their names begin; the others are for standard streams."""

_PREVIEW_1 = frozenset({"wasi_snapshot_preview1", "wasi_unstable"})

_CORE_LAYER = 1
_CORE_IMPORT, _COMPONENT_IMPORT = 2, 10
_FUNCTION, _TABLE, _MEMORY, _GLOBAL, _TAG = range(5)
_CORE_MODULE, _COMPONENT_FUNCTION, _VALUE, _TYPE, _COMPONENT, _INSTANCE = range(6)


def capabilities_of(program: bytes) -> frozenset[Capability]:
    """What a Wasm file's imports let it do; of a file that cannot be read: ``OTHER``. A native program needs no imports."""
    if is_native(program):
        return _OF_NATIVE
    try:
        names = imports_of(program)
    except IndexError:
        return frozenset({Capability.OTHER})
    found = {_capability(module, name) for module, name in names}
    return frozenset(one for one in found if one is not None)


def imports_of(program: bytes) -> list[tuple[str, str]]:
    """The imports of a core module, as module and name; of a component, as interface and an empty name.

    Raises:
        IndexError: the file cannot be read.
    """
    if len(program) < HEADER_BYTES:
        raise IndexError
    layer = int.from_bytes(program[6:8], "little")
    wanted, read = (
        (_COMPONENT_IMPORT, _read_component) if layer == _CORE_LAYER else (_CORE_IMPORT, _read_core)
    )
    return [one for section, body in read_sections(program) if section == wanted for one in read(body)]


def told(found: Iterable[Capability]) -> str:
    """The capabilities for a person, as ``clock, random``."""
    return ", ".join(sorted(found)) or "nothing"


def _read_core(body: bytes) -> list[tuple[str, str]]:
    found = []
    count, at = read_number(body, 0)
    for _ in range(count):
        module, at = read_name(body, at)
        name, at = read_name(body, at)
        kind, at = body[at], at + 1
        if kind == _FUNCTION:
            _, at = read_number(body, at)
        elif kind == _TABLE:
            at = _skip_limits(body, at + 1)
        elif kind == _MEMORY:
            at = _skip_limits(body, at)
        elif kind == _GLOBAL:
            at += 2
        elif kind == _TAG:
            _, at = read_number(body, at + 1)
        else:
            raise IndexError
        found.append((module, name))
    return found


def _read_component(body: bytes) -> list[tuple[str, str]]:
    found = []
    count, at = read_number(body, 0)
    for _ in range(count):
        form, at = body[at], at + 1
        name, at = read_name(body, at)
        if form > 1:  # 2: a name with options after it
            raise IndexError
        kind, at = body[at], at + 1
        if kind == _CORE_MODULE:
            at += 1
        elif kind == _TYPE:
            bound, at = body[at], at + 1
            if bound == 0:
                _, at = read_number(body, at)
                found.append((name, ""))
                continue
            found.append((name, ""))
            continue
        elif kind not in {_COMPONENT_FUNCTION, _COMPONENT, _INSTANCE}:
            raise IndexError
        _, at = read_number(body, at)
        found.append((name, ""))
    return found


def _skip_limits(body: bytes, at: int) -> int:
    flags, at = body[at], at + 1
    _, at = read_number(body, at)
    if flags & 1:
        _, at = read_number(body, at)
    return at


def _capability(module: str, name: str) -> Capability | None:
    if module in _PREVIEW_1:
        return next((found for start, found in _FUNCTIONS if name.startswith(start)), None)
    for start, found in _INTERFACES:
        if module.startswith(start):
            return found
    return Capability.OTHER
