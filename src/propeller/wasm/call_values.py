"""The parameters and the result of a called function as texts, by their types.

Core modules have numbers only; integers may be written signed or unsigned (4294967295 and -1 are the same i32). Of a component
(Component Model, its value types) numbers and ``true``/``false`` are as in JSON, a string or character is the text itself, a list is
a JSON array. A result of another type (record, tuple, option, …) is JSON too.
"""

import json
import math
import struct
import sys
from collections.abc import Sequence
from typing import Any

from wasmtime import component

from propeller.errors import InvalidError


class CallError(InvalidError):
    """There is no such function, the inputs do not fit its parameters, or it gave an error; the text says which."""


_CORE_INTEGER_BITS = {"i32": 32, "i64": 64}
_INTEGERS: dict[type, tuple[str, int, int]] = {
    kind: (f"{'s' if signed else 'u'}{bits}", -(1 << bits - 1) if signed else 0, (1 << bits - signed) - 1)
    for kind, signed, bits in (
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
_MAX_F32 = math.nextafter(3.4028235677973366e38, 0)  # the largest that rounds to a finite f32


def core_arguments(kinds: list[str], texts: Sequence[str]) -> list[int | float]:
    """Parse one decimal text a parameter.

    Raises:
        CallError: the count differs, or a text is not a number of its parameter's type.
    """
    if len(kinds) != len(texts):
        raise CallError(f"inputs: the function takes {len(kinds)} ({', '.join(kinds)}), {len(texts)} given")
    return [
        _core_argument(kind, text, index) for index, (kind, text) in enumerate(zip(kinds, texts, strict=True))
    ]


def _core_argument(kind: str, text: str, index: int) -> int | float:
    if kind in {"f32", "f64"}:
        try:
            return float(text)
        except ValueError:
            raise CallError(f"inputs[{index}]: {text!r} is not a number") from None
    if kind not in _CORE_INTEGER_BITS:
        raise CallError(f"inputs[{index}]: a parameter of type {kind} cannot be given as text")
    try:
        number = int(text)
    except ValueError:
        raise CallError(f"inputs[{index}]: {text!r} is not a whole number ({kind})") from None
    bits = _CORE_INTEGER_BITS[kind]
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise CallError(f"inputs[{index}]: {text} does not fit {kind}")
    return number - (1 << bits) if number >= 1 << bits - 1 else number


def core_result(kind: str, value: object) -> str:
    """A result as text: the shortest that reads back as the same number of its type."""
    if kind == "f32" and isinstance(value, float):
        for digits in range(1, 10):
            text = f"{value:.{digits}g}"
            if struct.pack("f", float(text)) == struct.pack("f", value):
                return repr(float(text))
    return repr(value) if isinstance(value, int | float) else f"<{kind}>"


def component_arguments(parameters: list[tuple[str, component.ValType]], texts: Sequence[str]) -> list[Any]:
    """Parse one text a parameter.

    Raises:
        CallError: the count differs, or a text is not a value of its parameter's type.
    """
    if len(parameters) != len(texts):
        shown = ", ".join(f"{name}: {type_name(kind)}" for name, kind in parameters)
        raise CallError(f"inputs: the function takes {len(parameters)} ({shown}), {len(texts)} given")
    return [
        _component_argument(kind, text, f"inputs[{index}] ({name}: {type_name(kind)})")
        for index, ((name, kind), text) in enumerate(zip(parameters, texts, strict=True))
    ]


def component_result(kind: component.ValType, value: Any) -> str:
    """A result as text.

    Raises:
        CallError: it is the error of a ``result``.
    """
    if isinstance(kind, component.ResultType):
        failed, payload = _unwrapped(kind, value)
        inner = kind.err if failed else kind.ok
        text = "" if inner is None else component_result(inner, payload)
        if failed:
            raise CallError(f"the function gave an error: {text}" if text else "the function gave an error")
        return text
    if type(kind) in _TEXTS:
        return str(value)
    if isinstance(kind, component.F32 | component.F64):
        return core_result(_FLOATS[type(kind)], value)
    return json.dumps(_json_value(value), separators=(",", ":"), ensure_ascii=False)


def type_name(kind: component.ValType) -> str:
    """A type as WIT writes it."""
    if type(kind) in _INTEGERS:
        return _INTEGERS[type(kind)][0]
    if isinstance(kind, component.ListType):
        return f"list<{type_name(kind.element)}>"
    known = {**_FLOATS, **_TEXTS, component.Bool: "bool"}
    return known.get(type(kind)) or type(kind).__name__.removesuffix("Type").lower()


def _component_argument(kind: component.ValType, text: str, where: str) -> Any:
    if isinstance(kind, component.String):
        return text
    if isinstance(kind, component.Char):
        return _component_value(kind, text, where)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise CallError(f"{where}: {text[:80]!r} cannot be read") from None
    return _component_value(kind, value, where)


def _component_value(kind: component.ValType, value: Any, where: str) -> Any:
    """A value of JSON as the runtime wants it for a type."""
    shown = repr(value)[:80]
    if isinstance(kind, component.ListType):
        if not isinstance(value, list):
            raise CallError(f"{where}: {shown} is not a list")
        items = [
            _component_value(kind.element, item, f"{where}[{index}]") for index, item in enumerate(value)
        ]
        return bytes(items) if isinstance(kind.element, component.U8) else items
    if isinstance(kind, component.Bool):
        fits = isinstance(value, bool)
    elif type(kind) in _INTEGERS:
        _, least, most = _INTEGERS[type(kind)]
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    elif type(kind) in _FLOATS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        largest = sys.float_info.max if isinstance(kind, component.F64) else _MAX_F32
        fits = number and (abs(value) <= largest or (isinstance(value, float) and not math.isfinite(value)))
        value = float(value) if fits else value
    elif isinstance(kind, component.String):
        fits = isinstance(value, str) and _is_text(value)
    elif isinstance(kind, component.Char):
        fits = isinstance(value, str) and len(value) == 1 and _is_text(value)
    else:
        raise CallError(f"{where}: a parameter of this type cannot be given as text")
    if not fits:
        raise CallError(f"{where}: {shown} is not a value of type {type_name(kind)}")
    return value


def _is_text(value: str) -> bool:
    """Whether it is Unicode: JSON can name halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _unwrapped(kind: component.ResultType, value: Any) -> tuple[bool, Any]:
    """Whether a ``result`` is its error, and what it holds: the runtime wraps a value only where its type does not tell."""
    if isinstance(value, component.Variant):
        return value.tag == "err", value.payload
    return type(value) not in _python_classes(kind.ok), value


def _python_classes(kind: component.ValType | None) -> set[type]:
    found: set[type] = set()
    if kind is None:
        return {type(None)}
    kind.add_classes(found)
    return {
        type(None) if one is object else one for one in found
    }  # the runtime says ``object`` of what holds nothing


def _json_value(value: Any) -> Any:
    """A value of the runtime as JSON can hold it."""
    if isinstance(value, bytes | list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, component.Variant):
        return {str(value.tag): _json_value(value.payload)}
    if isinstance(value, component.Record):
        return {name: _json_value(item) for name, item in vars(value).items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value
