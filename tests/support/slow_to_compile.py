"""A program that takes seconds to compile, as a large one does, without what a large one takes to build and to send."""

from collections.abc import Iterator

_TYPE, _FUNCTION, _CODE = 1, 3, 10
"""Sections of a module (WebAssembly Core Specification, 5.5.2)."""

_NO_PARAMETERS_OR_RESULTS = b"\x60\x00\x00"


def padded(module: bytes, *, loops: int = 18_000) -> bytes:
    """A core module with one function more, which nobody calls: 8 s of one processor, however many there are, in 0.3 MB."""
    sections = dict(_sections(module))
    types, rest = _read_number(sections[_TYPE])
    sections[_TYPE] = _number(types + 1) + rest + _NO_PARAMETERS_OR_RESULTS
    declared, rest = _read_number(sections[_FUNCTION])
    sections[_FUNCTION] = _number(declared + 1) + rest + _number(types)
    bodies, rest = _read_number(sections[_CODE])
    body = _body(loops)
    sections[_CODE] = _number(bodies + 1) + rest + _number(len(body)) + body
    return module[:8] + b"".join(
        bytes([kind]) + _number(len(content)) + content for kind, content in sections.items()
    )


def _body(loops: int) -> bytes:
    """Loops one after the other that multiply a local i64 by 7 until its low half is 0, and a store of it."""
    loop = b"\x03\x40\x20\x00\x42\x07\x7e\x22\x00\xa7\x0d\x00\x0b"
    store = b"\x41\x00\x20\x00\x37\x03\x00"
    return b"\x01\x01\x7e" + loop * loops + store + b"\x0b"


def _sections(module: bytes) -> Iterator[tuple[int, bytes]]:
    at = 8
    while at < len(module):
        size, rest = _read_number(module[at + 1 :])
        begin = len(module) - len(rest)
        yield module[at], module[begin : begin + size]
        at = begin + size


def _number(value: int) -> bytes:
    """As unsigned LEB128 (5.2.2)."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _read_number(content: bytes) -> tuple[int, bytes]:
    value = 0
    for place, byte in enumerate(content):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, content[place + 1 :]
    raise ValueError("a number has no end")
