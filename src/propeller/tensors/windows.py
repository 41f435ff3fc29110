"""Convolutions and pooling, with PyTorch's layouts, names and meanings."""

from collections.abc import Sequence
from typing import Any

from propeller.tensors.array import Array, record
from propeller.tensors.shapes import TensorError, elements

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "max_pool1d",
    "max_pool2d",
]

Sizes = int | Sequence[int]
"""A number for every spatial axis, or one for each."""


def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """``conv2d`` over sequences: ``x`` is [n, channels in, length], ``weight`` [channels out, channels in / groups, length]."""
    return _conv("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """The cross-correlation of images with kernels, as ``torch.nn.functional.conv2d``.

    Args:
        x: float32 or float64, [n, channels in, height, width].
        weight: [channels out, channels in / groups, height, width].
        bias: [channels out], added to each channel.
        stride: from one window to the next.
        padding: zeros added at both ends of each axis; ``"same"`` keeps the sizes (with a stride of 1), ``"valid"`` adds none.
        dilation: from one element of a window to the next.
        groups: into how many groups the channels are divided, each with kernels of its own.

    Returns:
        [n, channels out, height, width] of the windows.

    Raises:
        TensorError: Shapes, dtypes or sizes do not fit.
    """
    return _conv("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Array:
    """``conv_transpose2d`` over sequences."""
    return _conv_transpose(
        "conv_transpose1d", 1, x, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Array:
    """The gradient of ``conv2d`` by its input, as a layer of its own: as ``torch.nn.functional.conv_transpose2d``.

    Args:
        x: [n, channels in, height, width].
        weight: [channels in, channels out / groups, height, width].
        bias: [channels out].
        stride: of the convolution that this turns round: the result is about so many times as large.
        padding: what is cut off at both ends.
        output_padding: by how much the result is larger at its end, where several sizes would do; below the stride.
        groups: as of ``conv2d``.
        dilation: as of ``conv2d``.

    Raises:
        TensorError: Shapes, dtypes or sizes do not fit.
    """
    return _conv_transpose(
        "conv_transpose2d", 2, x, weight, bias, stride, padding, output_padding, groups, dilation
    )


def max_pool1d(
    x: Array, size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1
) -> Array:
    """``max_pool2d`` over sequences."""
    return _pool("max_pool1d", "max_pool", 1, x, size, stride, padding, dilation)[0]


def max_pool2d(
    x: Array, size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1
) -> Array:
    """The largest element of each window, as ``torch.nn.functional.max_pool2d``: of equal ones the first has the gradient.

    Args:
        x: [n, channels, height, width].
        size: of a window.
        stride: from one window to the next (None: as ``size``, so that they do not overlap).
        padding: added at both ends of each axis, at most half a window; it is never the largest.
        dilation: from one element of a window to the next.

    Raises:
        TensorError: Shapes, dtypes or sizes do not fit.
    """
    return _pool("max_pool2d", "max_pool", 2, x, size, stride, padding, dilation)[0]


def avg_pool1d(x: Array, size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Array:
    """``avg_pool2d`` over sequences."""
    total, count = _pool("avg_pool1d", "sum_pool", 1, x, size, stride, padding, 1)
    return total * (1 / count)


def avg_pool2d(x: Array, size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Array:
    """The mean of each window, in which the zeros of the padding count, as ``torch.nn.functional.avg_pool2d``.

    Args:
        x: [n, channels, height, width]; the mean of whole images is ``x.mean((2, 3))``.
        size: of a window.
        stride: from one window to the next (None: as ``size``).
        padding: zeros added at both ends of each axis, at most half a window.

    Raises:
        TensorError: Shapes, dtypes or sizes do not fit.
    """
    total, count = _pool("avg_pool2d", "sum_pool", 2, x, size, stride, padding, 1)
    return total * (1 / count)


def _conv(
    name: str,
    axes: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Array:
    _require_axes(name, axes, x, weight)
    steps, gaps = _sizes(name, axes, stride), _sizes(name, axes, dilation)
    if isinstance(padding, str):
        pads = _named_padding(name, padding, weight.shape[2:], steps, gaps)
    else:
        pads = [[size, size] for size in _sizes(name, axes, padding)]
    return _with_bias(name, record("conv", x, weight, params=[steps, pads, gaps, groups]), bias)


def _conv_transpose(
    name: str,
    axes: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Array:
    _require_axes(name, axes, x, weight)
    steps, gaps = _sizes(name, axes, stride), _sizes(name, axes, dilation)
    pads, more = _sizes(name, axes, padding), _sizes(name, axes, output_padding)
    if any(extra >= max(step, gap) for extra, step, gap in zip(more, steps, gaps, strict=True)):
        raise TensorError(f"{name}: output_padding {more} must be smaller than the stride {steps}")
    sizes = [
        (count - 1) * step - 2 * pad + gap * (wide - 1) + extra + 1
        for count, step, pad, gap, wide, extra in zip(
            x.shape[2:], steps, pads, gaps, weight.shape[2:], more, strict=True
        )
    ]
    if min(sizes) < 1:
        raise TensorError(f"{name}: a padding of {pads} leaves nothing of {list(x.shape)}")
    params = [sizes, steps, [[pad, pad] for pad in pads], gaps, groups]
    return _with_bias(name, record("conv_input", x, weight, params=params), bias)


def _pool(
    name: str,
    operation: str,
    axes: int,
    x: Array,
    size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    dilation: Sizes,
) -> tuple[Array, int]:
    """The pooled array, and how many elements a window has."""
    _require_axes(name, axes, x)
    window = _sizes(name, axes, size)
    steps = window if stride is None else _sizes(name, axes, stride)
    pads = [[each, each] for each in _sizes(name, axes, padding)]
    return record(operation, x, params=[window, steps, pads, _sizes(name, axes, dilation)]), elements(window)


def _require_axes(name: str, axes: int, *arrays: Any) -> None:
    for array in arrays:
        if not isinstance(array, Array) or array.ndim != axes + 2:
            shown = list(array.shape) if isinstance(array, Array) else type(array).__name__
            places = "height, width" if axes == 2 else "length"
            raise TensorError(
                f"{name} takes arrays of {axes + 2} dimensions, [n, channels, {places}], got {shown}"
            )


def _sizes(name: str, axes: int, given: Sizes) -> list[int]:
    sizes = [given] * axes if isinstance(given, int) else list(given)
    if len(sizes) != axes:
        raise TensorError(f"{name}: {given!r:.40} is not one number or {axes}")
    return sizes


def _named_padding(
    name: str, padding: str, window: Sequence[int], steps: list[int], gaps: list[int]
) -> list[list[int]]:
    if padding == "valid":
        return [[0, 0] for _ in window]
    if padding != "same":
        raise TensorError(f'{name}: padding {padding!r:.40} is neither a number nor "same" nor "valid"')
    if set(steps) != {1}:
        raise TensorError(f'{name}: padding="same" goes with a stride of 1, not {steps}')
    wanted = [(wide - 1) * gap for wide, gap in zip(window, gaps, strict=True)]
    return [[total // 2, total - total // 2] for total in wanted]


def _with_bias(name: str, x: Array, bias: Array | None) -> Array:
    if bias is None:
        return x
    if bias.shape != x.shape[1:2]:
        raise TensorError(
            f"{name}: a bias has one number for each of {x.shape[1]} channels, got {list(bias.shape)}"
        )
    return x + bias.reshape(-1, *[1] * (x.ndim - 2))
