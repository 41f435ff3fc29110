"""Random arrays: streams that begin with a seed, and keys of which any number of arrays are drawn inside traced functions."""

from binascii import crc32
from collections.abc import Sequence
from typing import Any

from propeller.tensors import session
from propeller.tensors.array import Array, record
from propeller.tensors.functions import sizes_of
from propeller.tensors.shapes import TensorError

__all__ = ["Random", "dropout", "normal", "permutation", "random", "uniform"]


class Random:
    """A stream of random arrays that depends on its seed only, not on when it is asked."""

    def __init__(self, seed: int | str) -> None:
        """Args: seed: an integer, whose sign does not count, or a text."""
        if not isinstance(seed, int | str):
            raise TensorError(f"random: a seed is an integer or a text, not of type {type(seed).__name__}")
        self._seed, self._drawn = crc32(seed.encode()) if isinstance(seed, str) else abs(seed), 0

    def normal(self, shape: int | Sequence[int] = ()) -> Array:
        """Standard normal, float32."""
        return self._draw("normal", shape)

    def uniform(self, shape: int | Sequence[int] = ()) -> Array:
        """From 0 to below 1, float32."""
        return self._draw("uniform", shape)

    def permutation(self, count: int) -> Array:
        """The integers below ``count`` in random order."""
        return self._draw("permutation", count)

    def key(self) -> Array:
        """A key for ``normal``, ``uniform``, ``permutation`` and ``dropout``: two integers, another key at each call."""
        return self._draw("key", 2)

    def _draw(self, kind: str, shape: int | Sequence[int]) -> Array:
        if session.current().tracing:
            raise TensorError(
                "a traced function would draw the same numbers each time: pass in key = r.key(), another one at each "
                "call, and draw with normal(key, shape); or draw outside and pass that in"
            )
        self._drawn += 1
        return record("random", params=[kind, sizes_of(shape), [self._seed, self._drawn]])


def random(seed: int | str) -> Random:
    """A stream of random arrays."""
    return Random(seed)


def normal(key: Array, shape: int | Sequence[int] = (), fold: int | Array = 0) -> Array:
    """Standard normal, float32: of one key and ``fold`` always the same.

    Args:
        key: Of ``Random.key()``.
        shape: Of the result.
        fold: Another integer, or array of one, for each array that is drawn of the same key.

    Raises:
        TensorError: The key is none.
    """
    return _draw("normal", shape, key, fold)


def uniform(key: Array, shape: int | Sequence[int] = (), fold: int | Array = 0) -> Array:
    """From 0 to below 1, float32, as ``normal``."""
    return _draw("uniform", shape, key, fold)


def permutation(key: Array, count: int, fold: int | Array = 0) -> Array:
    """The integers below ``count`` in random order, as ``normal``."""
    return _draw("permutation", count, key, fold)


def dropout(x: Array, rate: float | Array, key: Array, fold: int | Array = 0) -> Array:
    """Each element is 0 with the probability ``rate``, and otherwise divided by 1 - rate (Srivastava et al., JMLR 15 (2014) 1929-1958).

    Args:
        x: The elements.
        rate: From 0 to below 1.
        key: As of ``normal``.
        fold: As of ``normal``: another one for each layer.

    Raises:
        TensorError: The rate or the key is none.
    """
    if not isinstance(rate, Array):
        if not 0 <= rate < 1:
            raise TensorError(f"dropout: a rate is from 0 to below 1, not {rate!r:.40}")
        if rate == 0:
            return x
    kept = _draw("uniform", x.shape, key, fold) >= rate
    return record("where", kept, x, 0.0) * (1.0 / (1.0 - rate))


def _draw(kind: str, shape: int | Sequence[int], key: Any, fold: Any) -> Array:
    if isinstance(key, Random):
        raise TensorError(f"{kind}: a key is key = r.key(), drawn outside of what is traced and passed in")
    return record("draw", key, fold, params=[kind, sizes_of(shape)])
