"""The functions of a program, by the modes of tasks: what its file says it has, and what is said of one that is missing.

A built Python program says it in a custom section of its file, ``propeller push`` in an annotation of the artifact. Programs
in other languages say nothing, and are tried.
"""

from collections.abc import Iterable

FUNCTIONS = ("train", "evaluate", "aggregate")
"""The modes of tasks that a function can be for."""

SECTION = "propeller.functions"
"""The custom section of a Wasm file, and the annotation of its layer in a registry: names with blanks between."""

_HEADER_BYTES = 8
_CUSTOM = 0


def missing_function(mode: str) -> str:
    """What a program says that is to do what it has no function for."""
    otherwise = ", or leave evaluate out of the experiment" if mode == "evaluate" else ""
    return f"{_missing(mode)}: mark one with @{mode} of propeller.program{otherwise}"


def is_missing_function(reason: str, mode: str) -> bool:
    """Whether a failure is that of a program without a function for this mode."""
    return _missing(mode) in reason


def with_functions(program: bytes, functions: Iterable[str]) -> bytes:
    """A Wasm file that says which functions the program has."""
    name, names = SECTION.encode(), " ".join(functions).encode()
    content = _length(len(name)) + name + names
    return program + bytes([_CUSTOM]) + _length(len(content)) + content


def functions_of(program: bytes) -> list[str] | None:
    """The functions that a Wasm file says the program has; ``None`` if it does not say."""
    at = _HEADER_BYTES
    try:
        while at < len(program):
            kind = program[at]
            size, at = _read_length(program, at + 1)
            if kind == _CUSTOM:
                name_size, start = _read_length(program, at)
                if program[start : start + name_size] == SECTION.encode():
                    return read_functions(program[start + name_size : at + size].decode(errors="replace"))
            at += size
    except IndexError:  # cut off, or none: whoever runs it says so
        return None
    return None


def read_functions(text: str) -> list[str]:
    """The functions in a section or an annotation; names that are not known are left out."""
    return [name for name in text.split() if name in FUNCTIONS]


def _missing(mode: str) -> str:
    return f"this program has no function for {mode!r}"


def _length(number: int) -> bytes:
    """A length as Wasm files have it: LEB128, without a sign."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _read_length(program: bytes, at: int) -> tuple[int, int]:
    """A length of 32 bits, and where it ends.

    Raises:
        IndexError: it does not end.
    """
    number = 0
    for place in range(5):
        byte = program[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise IndexError("a length of more than 5 bytes")
