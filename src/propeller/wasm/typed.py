"""A component function's parameters and result as texts, by their types (Component Model, its value types).

Numbers and ``true``/``false`` are as in JSON, a string or character is the text itself, a list is a JSON array. A result of
another type (record, tuple, option, …) is JSON too.
"""

import json
import math
import sys
from typing import Any

from wasmtime import component

from propeller.wasm import values
from propeller.wasm.values import CallError

_INTEGERS: dict[type, tuple[str, int, int]] = {
    made: (f"{'s' if signed else 'u'}{bits}", -(1 << bits - 1) if signed else 0, (1 << bits - signed) - 1)
    for made, signed, bits in (
        (component.S8, True, 8),
        (component.S16, True, 16),
        (component.S32, True, 32),
        (component.S64, True, 64),
        (component.U8, False, 8),
        (component.U16, False, 16),
        (component.U32, False, 32),
        (component.U64, False, 64),
    )
}
_FLOATS: dict[type, str] = {component.F32: "f32", component.F64: "f64"}
_TEXTS: dict[type, str] = {component.String: "string", component.Char: "char"}
_F32_MOST = math.nextafter(3.4028235677973366e38, 0)  # the largest that rounds to a finite f32


def read(parameters: list[tuple[str, component.ValType]], texts: list[str]) -> list[Any]:
    """Parse one text a parameter.

    Raises:
        CallError: the count differs, or a text is not a value of its parameter's type.
    """
    if len(parameters) != len(texts):
        shown = ", ".join(f"{name}: {name_of(kind)}" for name, kind in parameters)
        raise CallError(f"inputs: the function takes {len(parameters)} ({shown}), {len(texts)} given")
    return [
        _read(kind, text, f"inputs[{place}] ({name}: {name_of(kind)})")
        for place, ((name, kind), text) in enumerate(zip(parameters, texts, strict=True))
    ]


def write(kind: component.ValType, value: Any) -> str:
    """A result as text.

    Raises:
        CallError: it is the error of a ``result``.
    """
    if isinstance(kind, component.ResultType):
        failed, payload = _failed(kind, value)
        inner = kind.err if failed else kind.ok
        text = "" if inner is None else write(inner, payload)
        if failed:
            raise CallError(f"the function gave an error: {text}" if text else "the function gave an error")
        return text
    if type(kind) in _TEXTS:
        return str(value)
    if isinstance(kind, component.F32 | component.F64):
        return values.write(_FLOATS[type(kind)], value)
    return json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False)


def name_of(kind: component.ValType) -> str:
    """A type as WIT writes it."""
    if type(kind) in _INTEGERS:
        return _INTEGERS[type(kind)][0]
    if isinstance(kind, component.ListType):
        return f"list<{name_of(kind.element)}>"
    known = {**_FLOATS, **_TEXTS, component.Bool: "bool"}
    return known.get(type(kind)) or type(kind).__name__.removesuffix("Type").lower()


def _read(kind: component.ValType, text: str, where: str) -> Any:
    if isinstance(kind, component.String):
        return text
    if isinstance(kind, component.Char):
        return _checked(kind, text, where)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise CallError(f"{where}: {text[:80]!r} cannot be read") from None
    return _checked(kind, value, where)


def _checked(kind: component.ValType, value: Any, where: str) -> Any:
    """A value of JSON as the runtime wants it for a type."""
    shown = repr(value)[:80]
    if isinstance(kind, component.ListType):
        if not isinstance(value, list):
            raise CallError(f"{where}: {shown} is not a list")
        items = [_checked(kind.element, item, f"{where}[{place}]") for place, item in enumerate(value)]
        return bytes(items) if isinstance(kind.element, component.U8) else items
    if isinstance(kind, component.Bool):
        fits = isinstance(value, bool)
    elif type(kind) in _INTEGERS:
        _, least, most = _INTEGERS[type(kind)]
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    elif type(kind) in _FLOATS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        largest = sys.float_info.max if isinstance(kind, component.F64) else _F32_MOST
        fits = number and (abs(value) <= largest or (isinstance(value, float) and not math.isfinite(value)))
        value = float(value) if fits else value
    elif isinstance(kind, component.String):
        fits = isinstance(value, str) and _is_text(value)
    elif isinstance(kind, component.Char):
        fits = isinstance(value, str) and len(value) == 1 and _is_text(value)
    else:
        raise CallError(f"{where}: a parameter of this type cannot be given as text")
    if not fits:
        raise CallError(f"{where}: {shown} is not a value of type {name_of(kind)}")
    return value


def _is_text(value: str) -> bool:
    """Whether it is Unicode: JSON can name halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _failed(kind: component.ResultType, value: Any) -> tuple[bool, Any]:
    """Whether a ``result`` is its error, and what it holds: the runtime wraps a value only where its type does not tell."""
    if isinstance(value, component.Variant):
        return value.tag == "err", value.payload
    return type(value) not in _classes(kind.ok), value


def _classes(kind: component.ValType | None) -> set[type]:
    found: set[type] = set()
    if kind is None:
        return {type(None)}
    kind.add_classes(found)
    return {type(None) if one is object else one for one in found}  # ``object`` is said of what holds nothing


def _plain(value: Any) -> Any:
    """A value of the runtime as JSON can hold it."""
    if isinstance(value, bytes | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, component.Variant):
        return {str(value.tag): _plain(value.payload)}
    if isinstance(value, component.Record):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value
