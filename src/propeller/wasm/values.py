"""A called function's parameters and result as decimal texts."""

import struct


class CallError(ValueError):
    """There is no such function, or the inputs do not fit its parameters; the text says which."""


_INTEGERS = {"i32": 32, "i64": 64}


def read(kinds: list[str], texts: list[str]) -> list[int | float]:
    """Parse one decimal text a parameter.

    Integers may be written signed or unsigned (4294967295 and -1 are the same i32).

    Raises:
        CallError: the count differs, or a text is not a number of its parameter's type.
    """
    if len(kinds) != len(texts):
        raise CallError(f"inputs: the function takes {len(kinds)} ({', '.join(kinds)}), {len(texts)} given")
    return [_read(kind, text, place) for place, (kind, text) in enumerate(zip(kinds, texts, strict=True))]


def _read(kind: str, text: str, place: int) -> int | float:
    if kind in {"f32", "f64"}:
        try:
            return float(text)
        except ValueError:
            raise CallError(f"inputs[{place}]: {text!r} is not a number") from None
    if kind not in _INTEGERS:
        raise CallError(f"inputs[{place}]: a parameter of type {kind} cannot be given as text")
    try:
        number = int(text)
    except ValueError:
        raise CallError(f"inputs[{place}]: {text!r} is not a whole number ({kind})") from None
    bits = _INTEGERS[kind]
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise CallError(f"inputs[{place}]: {text} does not fit {kind}")
    return number - (1 << bits) if number >= 1 << bits - 1 else number


def write(kind: str, value: object) -> str:
    """A result as text: the shortest that reads back as the same number of its type."""
    if kind == "f32" and isinstance(value, float):
        for digits in range(1, 10):
            text = f"{value:.{digits}g}"
            if struct.pack("f", float(text)) == struct.pack("f", value):
                return repr(float(text))
    return repr(value) if isinstance(value, int | float) else f"<{kind}>"
