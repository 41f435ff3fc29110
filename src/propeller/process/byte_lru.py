"""A cache in memory that is bounded by bytes: what was used longest ago goes first."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLru(LRUCache[K, V]):
    """A mapping whose values have at most ``max_bytes`` together; one that is larger alone is not kept."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], float]) -> None:
        """``size_of`` gives a value's size in bytes."""
        super().__init__(max_bytes, getsizeof=size_of)

    def __setitem__(self, key: K, value: V) -> None:
        """Keep a value; it replaces what the key had."""
        if self.getsizeof(value) > self.maxsize:
            self.pop(key, None)
        else:
            super().__setitem__(key, value)
