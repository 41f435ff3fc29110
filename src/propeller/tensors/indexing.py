"""What operations that index yield; rules of ``operations.py``."""

from collections.abc import Sequence
from typing import Any

from propeller.tensors.shapes import Spec, TensorError, broadcast, shape_of


def cut(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: for each leading axis a position (the axis goes) or ``[start, count, step]``."""
    dtype, shape = specs[0]
    if not isinstance(params, list | tuple) or len(params) > len(shape):
        raise TensorError(f"{name}: too many indices for {len(shape)} dimensions")
    left = []
    for axis, (part, size) in enumerate(zip(params, shape, strict=False)):
        if type(part) is int:
            if not 0 <= part < size:
                raise TensorError(f"index {part} is outside axis {axis} of size {size}")
            continue
        if type(part) not in {list, tuple} or len(part) != 3 or not all(type(n) is int for n in part):
            raise TensorError(f"{name}: {part!r:.80} is not a slice")
        start, count, step = part
        if step == 0 or count < 0:
            raise TensorError(f"{name}: {part!r} is not a slice")
        last = start + (count - 1) * step
        if count and not (0 <= start < size and 0 <= last < size):
            raise TensorError(f"{name}: {part!r} is outside axis {axis} of size {size}")
        left.append(count)
    return dtype, (*left, *shape[len(params) :])


def put(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: as of ``cut``; the second operand goes there."""
    place = cut(name, specs[:1], params)[1]
    if broadcast(name, specs[1][1], place) != place:
        raise TensorError(f"a value of shape {list(specs[1][1])} does not fit into {list(place)}")
    _whole(name, specs[1], specs[0])
    return specs[0]


def _whole(name: str, value: Spec, target: Spec) -> None:
    """Fractions are not dropped in silence."""
    if value[0].startswith("float") and not target[0].startswith("float"):
        raise TensorError(
            f"{name}: a value of {value[0]} does not go into an array of {target[0]}; use astype"
        )


def _indices(name: str, spec: Spec) -> None:
    if spec[0] == "bool":
        raise TensorError(
            f"{name}: an array of bool is no index; use where(mask, x, 0), or weigh with mask * x"
        )
    if spec[0] not in {"int64", "uint8"}:
        raise TensorError(f"{name}: indices are integers, got {spec[0]}; use astype('int64')")


def take(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (dtype, shape), where = specs
    _indices(name, where)
    if not shape:
        raise TensorError("a number has no rows to take")
    return dtype, where[1] + shape[1:]


def put_rows(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    place = take(name, specs[:2], None)[1]
    if broadcast(name, specs[2][1], place) != place:
        raise TensorError(f"a value of shape {list(specs[2][1])} does not fit into {list(place)}")
    _whole(name, specs[2], specs[0])
    return specs[0]


def pick(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (dtype, shape), where = specs
    _indices(name, where)
    if len(shape) != 2 or where[1] != shape[:1]:
        raise TensorError(
            f"pick takes a matrix and one column for each of its rows, got {list(shape)} and {list(where[1])}"
        )
    return dtype, where[1]


def one_hot(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """``params``: how many classes."""
    _indices(name, specs[0])
    return "float32", (*specs[0][1], *shape_of(name, [params]))
