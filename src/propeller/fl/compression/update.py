"""A whole update compressed, and what arrives of it.

Of an update's tensors, those of floating point in the base model become their difference to it, compressed. Integers become their exact
difference; truth values stay as they are. So do the strategy's tensors (``@KIND/…``): the server adds up what comes of them, round after
round, and would add up the errors.

In the document, ``@values/N``, ``@scales/N`` and ``@gaps/N`` are the numbers of the N-th compressed tensor, the scales of their blocks, and where
the numbers belong. All others are what their name says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ParamSpec, TypeVar

import numpy as np

from propeller.fl.compression.description import CompressedTensor, Description
from propeller.fl.compression.scheme import Scheme
from propeller.fl.compression.tensor import (
    Difference,
    Sent,
    SquaredNorms,
    decode_tensor,
    encode_tensor,
    working_dtype,
)
from propeller.fl.compression.values import random_source
from propeller.fl.tensors.base import Specs, Tensors, TensorSpec, check_shapes, specs_of
from propeller.fl.tensors.dtypes import DTYPES, Array, is_floating, is_integer, name_of, without_loss
from propeller.tensors.shapes import TensorError

_VALUES, _SCALES, _GAPS = "@values/", "@scales/", "@gaps/"
_RESERVED = (_VALUES, _SCALES, _GAPS)
_MAX_DIFFERENCE = 2**63 - 1
"""The largest difference of integers, in int64."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class EncodedUpdate:
    """What is sent for an update.

    Attributes:
        tensors: of the document.
        description: what they stand for; ``uncompressed`` is for the caller to add.
        residual: what the next update has to add; empty without error feedback.
    """

    tensors: Tensors
    description: Description
    residual: Tensors


def residual_specs(update: Tensors, base: Tensors) -> Specs:
    """What error feedback keeps of an update."""
    return {
        name: TensorSpec(name_of(working_dtype(base[name].dtype)), array.shape)
        for name, array in update.items()
        if name in base and is_floating(base[name].dtype)
    }


def encode_update(
    update: Tensors,
    base: Tensors,
    scheme: Scheme,
    seed: int,
    *,
    is_difference: bool = False,
    residual: Tensors | None = None,
    left: Tensors | None = None,
) -> EncodedUpdate:
    """Compress an update.

    Args:
        update: new weights of the base model's tensors, and the strategy's tensors.
        base: the model that it started from.
        scheme: how.
        seed: of stochastic rounding: the same one gives the same bytes.
        is_difference: whether ``update`` holds differences to the base model already.
        residual: what the last update of this device left; tensors that it does not have, or that have another shape, count as 0.
        left: arrays of ``residual_specs`` that take what this one leaves; made here if there are none.

    Raises:
        TensorError: naming the tensor that cannot be compressed.
    """
    sent: Tensors = {}
    compressed: list[CompressedTensor] = []
    left = {} if left is None else left
    norms = SquaredNorms()
    for name, array in update.items():
        if name.startswith(_RESERVED):
            raise TensorError("its name is reserved for compressed updates", name)
        of_base = base.get(name)
        if of_base is None:
            sent[name] = array
            continue
        check_shapes({name: array}, {name: of_base.shape})
        if not is_floating(of_base.dtype):
            exact = is_difference or not is_integer(of_base.dtype)
            sent[name] = array if exact else _naming(name, _exact_difference, array, of_base)
            continue
        dtype = working_dtype(of_base.dtype)
        before = (residual or {}).get(name)
        difference = Difference(
            array,
            None if is_difference else of_base,
            before if before is not None and before.shape == array.shape else None,
            dtype,
        )
        if scheme.error_feedback and name not in left:
            left[name] = np.empty(array.shape, dtype)
        random = random_source(seed, name)
        one = _naming(name, encode_tensor, difference, scheme, random, norms, left.get(name))
        number = len(compressed)
        spec = TensorSpec(name_of(dtype), array.shape)
        compressed.append(CompressedTensor(name, spec, one.form, None if one.gaps is None else one.count))
        for prefix, part in ((_VALUES, one.values), (_SCALES, one.scales), (_GAPS, one.gaps)):
            if part is not None:
                sent[f"{prefix}{number}"] = part
    return EncodedUpdate(sent, Description(tuple(compressed), norms.relative_error), left)


class CompressedUpdate:
    """An update as it came, whose tensors are decompressed as they are asked for."""

    def __init__(self, tensors: Tensors, description: Description, base: Specs) -> None:
        """Find what belongs to each tensor.

        Args:
            tensors: of the document.
            description: that came with it.
            base: what an update must have.

        Raises:
            TensorError: naming a tensor that belongs to none, or is there twice.
        """
        rest = dict(tensors)
        self._base = base
        self._compressed = {
            each.name: (each, [rest.pop(f"{prefix}{number}", None) for prefix in _RESERVED])
            for number, each in enumerate(description.tensors)
        }
        for name in rest:
            if name.startswith(_RESERVED):
                raise TensorError("is of no tensor that compression.tensors names", name)
            if name in self._compressed:
                raise TensorError("is there compressed, too", name)
        self._exact = rest

    @property
    def specs(self) -> Specs:
        """The names, dtypes and shapes of what it stands for, as it says itself."""
        compressed = {name: each.spec for name, (each, _) in self._compressed.items()}
        return {**specs_of(self._exact), **compressed}

    def read(self, name: str) -> Array:
        """What a tensor stands for: a difference to the base model, in float32 or float64; or the tensor as it came.

        Nothing is allocated before the base model has said how large it is.

        Raises:
            TensorError: it is not what ``encode_update`` makes for this base model.
        """
        if name in self._exact:
            return self._exact[name]
        each, parts = self._compressed[name]
        return _naming(name, _decode, each, parts, self._base.get(name))


def decode_update(tensors: Tensors, description: Description, base: Specs) -> Tensors:
    """All that an update stands for; as ``CompressedUpdate``.

    Raises:
        TensorError: naming the tensor that is wrong.
    """
    update = CompressedUpdate(tensors, description, base)
    return {name: update.read(name) for name in update.specs}


def _decode(each: CompressedTensor, parts: list[Array | None], base: TensorSpec | None) -> Array:
    values, scales, gaps = parts
    if base is None:
        raise TensorError("is not in the base model")
    if each.name.startswith("@") or not is_floating(DTYPES[base.dtype]):
        raise TensorError("is not of the model's floating-point numbers: it must be sent as it is")
    dtype = working_dtype(DTYPES[base.dtype])
    expected = TensorSpec(name_of(dtype), base.shape)
    if each.spec != expected:
        raise TensorError(
            f"is compressed as {each.spec.dtype} of shape {list(each.spec.shape)}; of this base model it is {expected.dtype} of "
            f"shape {list(expected.shape)}"
        )
    if values is None:
        raise TensorError("its values are missing")
    if (gaps is None) != (each.kept is None):
        raise TensorError("either both kept and its gaps must be there, or neither")
    size = prod(base.shape)
    count = size if each.kept is None else each.kept
    return decode_tensor(Sent(each.form, count, values, scales, gaps), size, dtype).reshape(base.shape)


def _naming(name: str, do: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do something with a tensor; an error names it."""
    try:
        return do(*args, **kwargs)
    except TensorError as error:
        raise TensorError(str(error), name) from None


def _exact_difference(values: Array, base: Array) -> Array:
    """``values - base`` of integers, in the base model's dtype if that holds it, else in int64.

    Numbers of floating point are rounded to integers first, as every strategy does it.

    Raises:
        TensorError: a number is none of the base model's dtype, or a difference is beyond int64.
    """
    whole = without_loss(np.rint(values) if is_floating(values.dtype) else values, base.dtype)
    if whole is None:
        raise TensorError(f"holds a number that {name_of(base.dtype)}, the base model's dtype, does not")
    wide = np.uint64 if base.dtype == DTYPES["U64"] else np.int64
    first, second = whole.astype(wide), base.astype(wide)
    below = first < second
    with np.errstate(over="ignore"):  # modulo 2**64 the smaller from the larger is right
        gap = np.where(
            below,
            second.view(np.uint64) - first.view(np.uint64),
            first.view(np.uint64) - second.view(np.uint64),
        )
    if gap.size and gap.max() > _MAX_DIFFERENCE:
        raise TensorError("differs from the base model by more than int64 holds")
    difference = np.where(below, -gap.astype(np.int64), gap.astype(np.int64))
    narrow = without_loss(difference, base.dtype)
    return difference if narrow is None else narrow
