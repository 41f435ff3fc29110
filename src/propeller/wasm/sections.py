"""The sections of Wasm files, core modules and components (WebAssembly core specification, 5.5; component model, Binary.md)."""

HEADER_BYTES = 8


def read_sections(wasm: bytes) -> list[tuple[int, bytes]]:
    """Each section's number and content, in order.

    Raises:
        IndexError: the file is cut off.
    """
    found, at = [], HEADER_BYTES
    while at < len(wasm):
        section = wasm[at]
        size, at = read_number(wasm, at + 1)
        if at + size > len(wasm):
            raise IndexError
        found.append((section, wasm[at : at + size]))
        at += size
    return found


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number, and the place after it.

    Raises:
        IndexError: it is cut off.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 28:
            return value, at


def write_number(value: int) -> bytes:
    """A number in unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_name(data: bytes, at: int) -> tuple[str, int]:
    """A name, and the place after it; what is not UTF-8 in it is replaced.

    Raises:
        IndexError: it is cut off.
    """
    size, at = read_number(data, at)
    if at + size > len(data):
        raise IndexError
    return data[at : at + size].decode(errors="replace"), at + size
