"""Makes a core module's memories and tables visible to the host, so that a failure can be put down to a limit.

A refused ``memory.grow`` or ``table.grow`` tells only the program. The host can see how large an exported one is; a
program need not export its own, so exports are added before it is compiled (WebAssembly core specification, 5.5).
"""

from propeller.wasm.sections import read_number, read_sections, write_number

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
    sections = read_sections(wasm)
    added = []
    for section, body in sections:
        if section in _KINDS:
            kind = _KINDS[section]
            for index in range(min(read_number(body, 0)[0], _MAX_ADDED)):
                name = f"{PREFIX}{kind}:{index}".encode()
                added.append(write_number(len(name)) + name + bytes([kind]) + write_number(index))
    written, done = [wasm[:8]], not added
    for section, body in sections:
        if not done and section == _EXPORT:
            count, at = read_number(body, 0)
            new, done = write_number(count + len(added)) + b"".join(added) + body[at:], True
            written.append(_section(_EXPORT, new))
            continue
        if not done and section in _AFTER_EXPORT:
            written.append(_section(_EXPORT, write_number(len(added)) + b"".join(added)))
            done = True
        written.append(_section(section, body))
    if not done:
        written.append(_section(_EXPORT, write_number(len(added)) + b"".join(added)))
    return b"".join(written)


def _section(section: int, body: bytes) -> bytes:
    return bytes([section]) + write_number(len(body)) + body
