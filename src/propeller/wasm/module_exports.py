"""Makes a core module's memories and tables visible to the host, so that a failure can be put down to a limit.

A refused ``memory.grow`` or ``table.grow`` tells only the program. The host can see how large an exported one is; a
program need not export its own, so exports are added before it is compiled (WebAssembly core specification, 5.5).
"""

PREFIX = "propeller:"
_TABLE, _MEMORY, _EXPORT = 4, 5, 7
_AFTER_EXPORT = {8, 9, 10, 11, 12}
_KINDS = {_TABLE: 1, _MEMORY: 2}
_MAX_ADDED = 16
"""Memories, and tables, that are exported: a store has 16 memories at most (``guest_program.py``)."""


def export_memories_and_tables(wasm: bytes) -> bytes:
    """The module with every memory and table exported under a name with ``PREFIX``.

    A module that is not well formed comes back as it is, for the compiler to refuse. Imported ones are not looked at: nothing here
    gives any, so such a module never starts.
    """
    try:
        return _with_exports(wasm)
    except IndexError:
        return wasm


def _with_exports(wasm: bytes) -> bytes:
    sections = _sections(wasm)
    added = []
    for section, body in sections:
        if section in _KINDS:
            kind = _KINDS[section]
            for index in range(min(_read_number(body, 0)[0], _MAX_ADDED)):
                name = f"{PREFIX}{kind}:{index}".encode()
                added.append(_number(len(name)) + name + bytes([kind]) + _number(index))
    written, done = [wasm[:8]], not added
    for section, body in sections:
        if not done and section == _EXPORT:
            count, at = _read_number(body, 0)
            new, done = _number(count + len(added)) + b"".join(added) + body[at:], True
            written.append(_section(_EXPORT, new))
            continue
        if not done and section in _AFTER_EXPORT:
            written.append(_section(_EXPORT, _number(len(added)) + b"".join(added)))
            done = True
        written.append(_section(section, body))
    if not done:
        written.append(_section(_EXPORT, _number(len(added)) + b"".join(added)))
    return b"".join(written)


def _sections(wasm: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 8
    while at < len(wasm):
        section = wasm[at]
        size, at = _read_number(wasm, at + 1)
        if at + size > len(wasm):
            raise IndexError
        found.append((section, wasm[at : at + size]))
        at += size
    return found


def _section(section: int, body: bytes) -> bytes:
    return bytes([section]) + _number(len(body)) + body


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 28:
            return value, at


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
