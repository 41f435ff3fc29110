"""What every operation yields: the element type and shape of its result, from those of its operands.

The one definition that programs, the sandbox's host and the pure-Python machine share: a program meets a wrong shape on the
line that made it, and the host checks the same rule again before it takes memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

from propeller.tensors import indexing
from propeller.tensors.shapes import (
    FLOAT,
    INT,
    ITEM_BYTES,
    MOST_DIMENSIONS,
    Spec,
    TensorError,
    axis_of,
    broadcast,
    elements,
    fits,
    floating,
    promote,
    shape_of,
)

_MOST_ELEMENTS = 1 << 40


def infer(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """The spec of an operation's result.

    Args:
        name: One of ``OPERATIONS``.
        specs: Of its operands.
        params: What else it takes; see the rule of each.

    Raises:
        TensorError: There is no such operation, or it does not take these.
    """
    rule = OPERATIONS.get(name)
    if rule is None:
        raise TensorError(f"there is no operation {name!r}")
    count, check = rule
    if count is not None and len(specs) != count:
        raise TensorError(f"{name} takes {count} operands, got {len(specs)}")
    dtype, shape = check(name, specs, params)
    if len(shape) > MOST_DIMENSIONS:
        raise TensorError(f"{name}: {len(shape)} dimensions; at most {MOST_DIMENSIONS}")
    if elements(shape) > _MOST_ELEMENTS:
        raise TensorError(f"{name}: a result of shape {list(shape)} is too large")
    return dtype, shape


def _dtype_of(name: str, dtype: Any) -> str:
    if dtype not in ITEM_BYTES:
        raise TensorError(f"{name}: there is no dtype {dtype!r}; there are {', '.join(ITEM_BYTES)}")
    return str(dtype)


def _same(_name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    dtype, shape = specs[0]
    return "int64" if dtype == "bool" else dtype, shape


def _float(_name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    return floating(specs[0][0]), specs[0][1]


def _pair(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (first, one), (second, other) = specs
    return promote(first, second), broadcast(name, one, other)


def _sum(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _pair(name, specs, params)
    return "int64" if dtype == "bool" else dtype, shape


def _divide(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = _pair(name, specs, params)
    return floating(dtype), shape


def _compare(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    return "bool", _pair(name, specs, params)[1]


def _logical(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    shape = specs[0][1]
    for dtype, other in specs:
        if dtype != "bool":
            raise TensorError(f"{name} takes arrays of bool, got {dtype}")
        shape = broadcast(name, shape, other)
    return "bool", shape


def _where(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    condition, one, other = specs
    if condition[0] != "bool":
        raise TensorError(f"where: the condition is an array of bool, got {condition[0]}")
    dtype = promote(one[0], other[0])
    strong = {FLOAT: "float32", INT: "int64"}.get(dtype, dtype)
    return strong, broadcast(name, broadcast(name, one[1], other[1]), condition[1])


def _matmul(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (first, one), (second, other) = specs
    if not one or not other:
        raise TensorError("matmul takes arrays of one or more dimensions")
    inner = other[-2] if len(other) > 1 else other[0]
    if one[-1] != inner:
        raise TensorError(
            f"matmul: shapes {list(one)} and {list(other)} do not fit: {one[-1]} is not {inner}"
        )
    dtype = promote(first, second)
    if dtype == "bool":
        raise TensorError("matmul does not take arrays of bool; use astype")
    stack = broadcast(name, one[:-2], other[:-2])
    return dtype, stack + one[-2:-1] + (other[-1:] if len(other) > 1 else ())


def _reduce(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: ``[axes or null, keepdims]``."""
    dtype, shape = specs[0]
    axes, keep = params
    gone = set(range(len(shape))) if axes is None else {axis_of(name, axis, len(shape)) for axis in axes}
    if type(keep) is not bool or (axes is not None and len(gone) != len(axes)):
        raise TensorError(f"{name}: {params!r:.80} is not [axes, each once, and whether they are kept]")
    if name in {"max", "min"} and any(shape[axis] == 0 for axis in gone):
        raise TensorError(f"{name}: nothing to choose from in shape {list(shape)}")
    left = tuple(1 if n in gone else size for n, size in enumerate(shape) if keep or n not in gone)
    if name == "mean":
        return floating(dtype), left
    return ("int64" if name == "sum" and dtype in {"bool", "uint8"} else dtype), left


def _arg(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the axis, or null for all elements in order."""
    shape = specs[0][1]
    left: tuple[int, ...] = ()
    if params is None:
        among = elements(shape)
    else:
        axis = axis_of(name, params, len(shape))
        left, among = shape[:axis] + shape[axis + 1 :], shape[axis]
    if among == 0:
        raise TensorError(f"{name}: nothing to choose from in shape {list(shape)}")
    return "int64", left


def _along(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the axis."""
    axis = axis_of(name, params, len(specs[0][1]))
    if specs[0][1][axis] == 0:
        raise TensorError(f"{name}: axis {axis} of shape {list(specs[0][1])} has nothing in it")
    return floating(specs[0][0]), specs[0][1]


def _reshape(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the new shape."""
    shape = shape_of(name, params)
    if elements(shape) != elements(specs[0][1]):
        raise TensorError(f"reshape: {list(specs[0][1])} has not as many elements as {list(shape)}")
    return specs[0][0], shape


def _transpose(_name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the axes in their new order."""
    dtype, shape = specs[0]
    if not isinstance(params, list | tuple) or sorted(params) != list(range(len(shape))):
        raise TensorError(f"transpose: {params!r} is not an order of {len(shape)} axes")
    return dtype, tuple(shape[axis] for axis in params)


def _broadcast_to(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the shape."""
    shape = shape_of(name, params)
    if broadcast(name, specs[0][1], shape) != shape:
        raise TensorError(f"broadcast_to: {list(specs[0][1])} does not fit into {list(shape)}")
    return specs[0][0], shape


def _cast(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the dtype."""
    return _dtype_of(name, params), specs[0][1]


def _concatenate(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: the axis."""
    if not specs:
        raise TensorError("concatenate takes one array or more")
    dtype, shape = specs[0]
    axis = axis_of(name, params, len(shape))
    total = 0
    for other, sizes in specs:
        dtype = promote(dtype, other)
        if len(sizes) != len(shape) or any(
            n != axis and one != two for n, (one, two) in enumerate(zip(sizes, shape, strict=True))
        ):
            raise TensorError(f"concatenate: {list(sizes)} does not join {list(shape)} along axis {axis}")
        total += sizes[axis]
    return dtype, (*shape[:axis], total, *shape[axis + 1 :])


def _full(name: str, _specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: ``[dtype, shape, value]``."""
    dtype, sizes, value = params
    if type(value) not in {bool, int, float} or not fits(value, _dtype_of(name, dtype)):
        raise TensorError(f"{name}: {value!r:.40} is no {dtype}")
    return dtype, shape_of(name, sizes)


def _arange(name: str, _specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: how many, from 0."""
    return "int64", shape_of(name, [params])


def _random(name: str, _specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: ``[kind, shape, seed]``; the seed is a list of integers."""
    kind, sizes, seed = params
    if kind not in {"normal", "uniform", "permutation"}:
        raise TensorError(f"random: there is no kind {kind!r}")
    if not isinstance(seed, list | tuple) or not all(type(n) is int and n >= 0 for n in seed):
        raise TensorError(f"random: {seed!r} is not a seed")
    shape = shape_of(name, sizes)
    if kind == "permutation" and len(shape) != 1:
        raise TensorError("random: a permutation has one dimension")
    return "int64" if kind == "permutation" else "float32", shape


Rule = Callable[[str, Sequence[Spec], Any], Spec]

OPERATIONS: dict[str, tuple[int | None, Rule]] = {
    **dict.fromkeys(("neg", "abs", "sign", "relu", "square"), (1, _same)),
    **dict.fromkeys(("exp", "log", "sqrt", "sigmoid", "tanh"), (1, _float)),
    **dict.fromkeys(("add", "sub", "mul", "mod", "floordiv"), (2, _sum)),
    **dict.fromkeys(("maximum", "minimum"), (2, _pair)),
    **dict.fromkeys(("div", "pow"), (2, _divide)),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), (2, _compare)),
    **dict.fromkeys(("and", "or"), (2, _logical)),
    "not": (1, _logical),
    "where": (3, _where),
    "matmul": (2, _matmul),
    **dict.fromkeys(("sum", "mean", "max", "min"), (1, _reduce)),
    **dict.fromkeys(("argmax", "argmin"), (1, _arg)),
    **dict.fromkeys(("softmax", "log_softmax"), (1, _along)),
    "reshape": (1, _reshape),
    "transpose": (1, _transpose),
    "broadcast_to": (1, _broadcast_to),
    "cast": (1, _cast),
    "cut": (1, indexing.cut),
    "put": (2, indexing.put),
    "take": (2, indexing.take),
    "put_rows": (3, indexing.put_rows),
    "pick": (2, indexing.pick),
    "one_hot": (1, indexing.one_hot),
    "concatenate": (None, _concatenate),
    "full": (0, _full),
    "arange": (0, _arange),
    "random": (0, _random),
}
"""Every operation: how many operands it takes (None: any number), and its rule."""
