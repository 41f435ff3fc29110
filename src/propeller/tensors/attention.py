"""Attention: for each query, the mean of the values, weighted by how the query fits their keys."""

import math

from propeller.tensors.arranging import swapaxes
from propeller.tensors.array import Array, record
from propeller.tensors.shapes import TensorError

__all__ = ["scaled_dot_product_attention"]

_FAR_BELOW = -1e30
"""A score that gives no weight beside any other, and no NaN where there is none beside it."""


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    """softmax(query keyᵀ / √width) value (Vaswani et al., arXiv:1706.03762, equation 1).

    Args:
        query: ``[…, queries, width]``; the axes ahead, of examples and heads, are broadcast.
        key: ``[…, keys, width]``.
        value: ``[…, keys, value width]``.
        mask: Broadcast to ``[…, queries, keys]``: of bool, whether a key takes part; of floats, what is added to the scores. A query for which
            no key takes part gets the mean of all values.
        causal: Only keys that are not behind the query take part.
        scale: What the products are multiplied with, in place of 1 / √width.

    Returns:
        ``[…, queries, value width]``.

    Raises:
        TensorError: The shapes do not fit together.
    """
    if min(query.ndim, key.ndim, value.ndim) < 2 or key.shape[-2] != value.shape[-2]:
        raise TensorError(
            "scaled_dot_product_attention takes […, queries, width], […, keys, width] and […, keys, value width], "
            f"got {list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    factor = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
    scores = (query * factor) @ swapaxes(key, -1, -2)
    if mask is not None:
        scores = scores + mask if mask.dtype != "bool" else record("where", mask, scores, _FAR_BELOW)
    if causal:
        queries, keys = (record("arange", params=size) for size in scores.shape[-2:])
        scores = record("where", queries.reshape(-1, 1) >= keys, scores, _FAR_BELOW)
    return record("softmax", scores, params=-1) @ value
