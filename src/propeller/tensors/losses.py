"""Losses: one number, which is the mean over the examples unless told otherwise, made of operations."""

from typing import Any, Literal

from propeller.tensors.array import Array, record
from propeller.tensors.operations.indexing import check_labels
from propeller.tensors.shapes import TensorError, elements, is_floating

__all__ = ["binary_cross_entropy", "cross_entropy", "huber_loss", "l1_loss", "mse_loss"]

Reduction = Literal["mean", "sum", "none"]
"""What becomes of the losses: their mean, their sum, or they stay as they are."""


def cross_entropy(
    logits: Array, labels: Array, *, label_smoothing: float | Array = 0.0, reduction: Reduction = "mean"
) -> Array:
    """The negative logarithm of the probability that ``softmax(logits)`` gives to the labels, without overflow.

    Args:
        logits: A number for each class along the last axis.
        labels: Integers, one for each of the others: the right class. Or the probability of each class, in the shape of ``logits``.
        label_smoothing: This part of each label is spread evenly over all classes (Szegedy et al., arXiv:1512.00567, section 7).
        reduction: Of the losses.

    Raises:
        TensorError: The shapes do not fit together, or an argument is none of these.
    """
    if logits.ndim == 0:
        raise TensorError("cross_entropy: the logits have no axis of classes")
    chances = record("log_softmax", logits, params=-1)
    if is_floating(labels.dtype):
        if labels.shape == logits.shape[:-1] != logits.shape:
            raise TensorError(
                f"cross_entropy: labels of classes are integers, got {labels.dtype} {list(labels.shape)}: use y.astype('int64')"
            )
        if labels.shape != logits.shape:
            raise TensorError(
                f"cross_entropy: probabilities of shape {list(labels.shape)} are not those of logits of "
                f"{list(logits.shape)}"
            )
        losses = -(labels * chances).sum(-1)
    else:
        check_labels("cross_entropy", labels.spec, logits.shape[:-1])
        classes = logits.shape[-1]
        rows = chances.reshape(elements(logits.shape[:-1]), classes)
        losses = -record("pick", rows, labels.reshape(-1)).reshape(labels.shape)
    if isinstance(label_smoothing, Array) or label_smoothing:
        losses = losses * (1.0 - label_smoothing) - chances.mean(-1) * label_smoothing
    return _reduced(losses, reduction)


def binary_cross_entropy(logits: Array, labels: Any, *, reduction: Reduction = "mean") -> Array:
    """The negative logarithm of the probability that ``sigmoid(logits)`` gives to labels of 0 and 1, or between, without overflow."""
    return _reduced(record("softplus", logits) - labels * logits, reduction)


def mse_loss(x: Array, target: Any, *, reduction: Reduction = "mean") -> Array:
    """The squared difference."""
    return _reduced(record("square", x - target), reduction)


def l1_loss(x: Array, target: Any, *, reduction: Reduction = "mean") -> Array:
    """The difference without its sign."""
    return _reduced(abs(x - target), reduction)


def huber_loss(x: Array, target: Any, *, delta: float = 1.0, reduction: Reduction = "mean") -> Array:
    """Half the squared difference, and linear beyond ``delta`` (Huber, Annals of Mathematical Statistics 35 (1964) 73-101)."""
    apart = abs(x - target)
    losses = record("where", apart <= delta, record("square", apart) * 0.5, (apart - delta * 0.5) * delta)
    return _reduced(losses, reduction)


def _reduced(losses: Array, reduction: Reduction) -> Array:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise TensorError(f"a reduction is 'mean', 'sum' or 'none', not {reduction!r:.40}")
