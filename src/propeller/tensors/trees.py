"""Dicts, lists and tuples at any depth, whose leaves are what functions compute with."""

from collections.abc import Callable
from typing import Any


def leaves_of(value: Any) -> list[Any]:
    """What is in no further container, in order; None is empty."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves_of(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves_of(part)]
    return [] if value is None else [value]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same containers with what the function makes of each leaf."""
    if isinstance(value, dict):
        return {name: map_leaves(function, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return like(value, [map_leaves(function, part) for part in value])
    return None if value is None else function(value)


def like(container: Any, parts: list[Any]) -> Any:
    """A list, tuple or named tuple of the same type with other parts."""
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def leaves_as_in(template: Any, value: Any) -> list[Any] | None:
    """The leaves of a value in the order of a template of the same form; None where its form is another."""
    if isinstance(template, dict):
        if not isinstance(value, dict) or value.keys() != template.keys():
            return None
        pairs = [(part, value[name]) for name, part in template.items()]
    elif isinstance(template, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(template):
            return None
        pairs = list(zip(template, value, strict=True))
    elif template is None or value is None or isinstance(value, dict | list | tuple):
        return [] if template is None and value is None else None
    else:
        return [value]
    found = [leaves_as_in(part, other) for part, other in pairs]
    return None if None in found else [leaf for part in found for leaf in part or ()]
