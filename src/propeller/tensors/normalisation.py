"""Normalisation: elements moved and scaled so that groups of them have the mean 0 and the variance 1."""

from collections.abc import Sequence

from propeller.tensors.array import Array, record
from propeller.tensors.shapes import TensorError, axis_of, elements

__all__ = ["batch_norm", "group_norm", "layer_norm"]


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
) -> Array:
    """Each example by itself, along ``axis`` (Ba et al., arXiv:1607.06450).

    Args:
        x: The elements.
        weight: What the result is multiplied with: in the shape of the normalised axes, if these are the last.
        bias: What is added then.
        axis: One axis or several.
        eps: Added to the variance.
    """
    return _with_weights(_normalised(x, axis, eps), weight, bias)


def group_norm(
    x: Array, groups: int, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> Array:
    """Each example by itself, the channels in groups (Wu and He, arXiv:1803.08494); with as many groups as channels, each channel.

    Args:
        x: ``[examples, channels, …]``.
        groups: How many there are.
        weight: What each channel is multiplied with.
        bias: What is added to each channel then.
        eps: Added to the variance.

    Raises:
        TensorError: The channels cannot be divided into these groups.
    """
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups:
        raise TensorError(
            f"group_norm: {list(x.shape)} is not [examples, channels, …] in {groups} groups of channels"
        )
    count = elements(x.shape[1:]) // groups
    result = _normalised(x.reshape(x.shape[0], groups, count), -1, eps).reshape(x.shape)
    return _with_channel_weights(result, weight, bias, 1)


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    mean: Array | None = None,
    var: Array | None = None,
    axis: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Each channel over the batch (Ioffe and Szegedy, arXiv:1502.03167).

    Args:
        x: The batch.
        weight: What each channel is multiplied with.
        bias: What is added to each channel then.
        mean: Of each channel, with ``var``: what to use in an evaluation. None: the batch's own.
        var: Of each channel.
        axis: Of the channels.
        eps: Added to the variance.

    Returns:
        The result, and each channel's mean and variance: those that were given, or the batch's, the variance divided by one less than the elements
        are, as running ones take it: ``running_mean = 0.9 * running_mean + 0.1 * mean``.

    Raises:
        TensorError: Of mean and variance only one is given.
    """
    at = axis_of("batch_norm", axis, x.ndim)
    if (mean is None) != (var is None):
        raise TensorError("batch_norm: give mean and var together, or neither")
    if mean is not None and var is not None:
        given, spread = _of_channels(mean, x.ndim, at), _of_channels(var, x.ndim, at)
        return _with_channel_weights((x - given) * (spread + eps) ** -0.5, weight, bias, at), mean, var
    others = [axis for axis in range(x.ndim) if axis != at]
    count = elements(x.shape) // max(x.shape[at], 1)
    centre = x.mean(others, keepdims=True)
    apart = x - centre
    spread = record("square", apart).mean(others, keepdims=True)
    result = _with_channel_weights(apart * (spread + eps) ** -0.5, weight, bias, at)
    return result, centre.reshape(-1), spread.reshape(-1) * (count / max(count - 1, 1))


def _normalised(x: Array, axis: int | Sequence[int], eps: float) -> Array:
    apart = x - x.mean(axis, keepdims=True)
    # To multiply with the root's reciprocal takes one pass over the elements less in the gradient.
    return apart * (record("square", apart).mean(axis, keepdims=True) + eps) ** -0.5


def _with_weights(x: Array, weight: Array | None, bias: Array | None) -> Array:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _with_channel_weights(x: Array, weight: Array | None, bias: Array | None, axis: int) -> Array:
    return _with_weights(
        x, *(each if each is None else _of_channels(each, x.ndim, axis) for each in (weight, bias))
    )


def _of_channels(x: Array, rank: int, axis: int) -> Array:
    """A number for each channel, in the shape that meets theirs."""
    return x.reshape(-1, *[1] * (rank - 1 - axis))
