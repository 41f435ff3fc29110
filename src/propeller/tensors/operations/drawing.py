"""Operations that draw random arrays: from a seed that stands in them, or from a key that is an operand."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from propeller.tensors.operations.operation import Kernel, Operation
from propeller.tensors.shapes import INT, Spec, TensorError, elements, shape_of

_DTYPES = {"normal": "float32", "uniform": "float32", "permutation": "int64", "key": "int64"}
"""What there is to draw."""

KEY: Spec = ("int64", (2,))
"""What a key is."""

# What they yield --------------------------------------------------------------------------------------------


def _of_kind(name: str, kind: Any, sizes: Any) -> Spec:
    if kind not in _DTYPES:
        raise TensorError(f"{name}: there is no kind {kind!r:.40}")
    shape = shape_of(name, sizes)
    if kind == "permutation" and len(shape) != 1:
        raise TensorError(f"{name}: a permutation has one dimension")
    return _DTYPES[kind], shape


def _of_seed(name: str, _specs: Sequence[Spec], params: Any) -> Spec:
    kind, sizes, seed = params
    if not isinstance(seed, list | tuple) or not all(type(n) is int and n >= 0 for n in seed):
        raise TensorError(f"{name}: {seed!r:.80} is not a seed")
    return _of_kind(name, kind, sizes)


def _of_key(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    key, fold = specs
    if key != KEY:
        raise TensorError(
            f"{name}: a key is what r.key() gives, two integers of int64, not {key[0]} {list(key[1])}"
        )
    if fold[0] not in {INT, "int64", "uint8"} or fold[1] != ():
        raise TensorError(f"{name}: fold is one integer, not {fold[0]} {list(fold[1])}")
    kind, sizes = params
    return _of_kind(name, kind, sizes)


# Kernels in plain Python ------------------------------------------------------------------------------------


def _elements(kind: str, count: int, seed: list[Any]) -> list[Any]:
    source = random.Random(repr(seed))  # noqa: S311 - not for secrets
    if kind == "permutation":
        return source.sample(range(count), count)
    draw = partial(source.gauss, 0, 1) if kind == "normal" else source.random
    return [source.getrandbits(63) if kind == "key" else draw() for _ in range(count)]


def _random(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    kind, _, seed = params
    return lambda: _elements(kind, elements(out[1]), seed)


def _draw(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    return lambda key, fold: _elements(params[0], elements(out[1]), [*key, *fold])


# The operations ---------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="random",
        operands=0,
        params="`[kind, shape, seed]`",
        doc="`normal`, `uniform` (`float32`), `permutation` or `key` (`int64`); the seed is a list of integers",
        infer=_of_seed,
        gradient=None,
        kernel=_random,
    ),
    Operation(
        name="draw",
        operands=2,
        params="`[kind, shape]`",
        doc="as `random`, of a key (two of `int64`) and an integer beside it",
        infer=_of_key,
        gradient=None,
        kernel=_draw,
    ),
)
