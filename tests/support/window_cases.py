"""Cases of the operations on windows: by their definitions, window by window."""

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

from propeller.program import tensors as pt

Draw = Callable[..., Any]
Case = tuple[list[Any], Any, Any]
Params = tuple[list[int], list[list[int]], list[int]]

VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.25, 3.0])


def floats(draw: Draw, shape: Any, dtype: str) -> Any:
    return draw(hnp.arrays(dtype, tuple(shape), elements=VALUES, fill=st.nothing()))


def windows(sizes: Any, window: Any, params: Params) -> Any:
    """Of each window its place among the windows, and where its elements are in the padded input."""
    strides, padding, dilation = params
    counts = [
        (size + sum(pad) - gap * (wide - 1) - 1) // step + 1
        for size, wide, step, pad, gap in zip(sizes, window, strides, padding, dilation, strict=True)
    ]
    for place in itertools.product(*map(range, counts)):
        yield (
            place,
            tuple(
                slice(at * step, at * step + gap * (wide - 1) + 1, gap)
                for at, step, wide, gap in zip(place, strides, window, dilation, strict=True)
            ),
        )


def padded(x: Any, padding: Any, value: float = 0.0) -> Any:
    return np.pad(x, [(0, 0), (0, 0), *padding], constant_values=value)


def inside(x: Any, padding: Any) -> Any:
    return x[
        (
            ...,
            *(
                slice(before, size - behind)
                for (before, behind), size in zip(padding, x.shape[2:], strict=True)
            ),
        )
    ]


def counts_of(sizes: Any, window: Any, params: Params) -> list[int]:
    places = [place for place, _ in windows(sizes, window, params)]
    return [1 + max(place[axis] for place in places) for axis in range(len(window))]


def placed(draw: Draw, *, pooled: bool = False) -> tuple[list[int], list[int], Params]:
    """Sizes of the input and the window, and strides, padding and dilation with which there is a window."""
    axes = draw(st.integers(1, 2))
    window = [draw(st.integers(1, 3)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    most = [((wide - 1) * gap + 1) // 2 if pooled else 2 for wide, gap in zip(window, dilation, strict=True)]
    padding = [[draw(st.integers(0, top)), draw(st.integers(0, top))] for top in most]
    sizes = [
        draw(st.integers(max(1, gap * (wide - 1) + 1 - sum(pad)), 5))
        for wide, gap, pad in zip(window, dilation, padding, strict=True)
    ]
    return sizes, window, ([draw(st.integers(1, 3)) for _ in range(axes)], padding, dilation)


def convolution(draw: Draw) -> tuple[Any, Any, Any, list[Any]]:
    """An input, a kernel, a gradient of their convolution, and its params."""
    sizes, window, params = placed(draw)
    groups, dtype = draw(st.integers(1, 2)), draw(st.sampled_from(["float32", "float64"]))
    count, into, out = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    x = floats(draw, (count, into * groups, *sizes), dtype)
    kernel = floats(draw, (out * groups, into, *window), dtype)
    up = floats(draw, (count, out * groups, *counts_of(sizes, window, params)), dtype)
    return x, kernel, up, [*params, groups]


def blocks(x: Any, kernel: Any, params: list[Any]) -> Any:
    """Each product: places in the result, in the padded input and in the kernel, by group and window."""
    *place, groups = params
    out, into = kernel.shape[0] // groups, kernel.shape[1]
    for group, (at, elements) in itertools.product(
        range(groups), list(windows(x.shape[2:], kernel.shape[2:], (place[0], place[1], place[2])))
    ):
        yield (
            (slice(None), slice(group * out, (group + 1) * out), *at),
            (slice(None), slice(group * into, (group + 1) * into), *elements),
            slice(group * out, (group + 1) * out),
        )


def conv(draw: Draw) -> Case:
    x, kernel, up, params = convolution(draw)
    source, result = padded(x, params[1]), np.zeros_like(up)
    for to, at, outputs in blocks(x, kernel, params):
        axes = list(range(1, x.ndim))
        result[to] = np.tensordot(source[at], kernel[outputs], (axes, axes))
    return [x, kernel], params, result


def conv_input(draw: Draw) -> Case:
    x, kernel, up, params = convolution(draw)
    result = np.zeros_like(padded(x, params[1]))
    for to, at, outputs in blocks(x, kernel, params):
        result[at] += np.tensordot(up[to], kernel[outputs], (1, 0))
    return [up, kernel], [list(x.shape[2:]), *params], inside(result, params[1])


def conv_kernel(draw: Draw) -> Case:
    x, kernel, up, params = convolution(draw)
    source, result = padded(x, params[1]), np.zeros_like(kernel)
    for to, at, outputs in blocks(x, kernel, params):
        result[outputs] += np.tensordot(up[to], source[at], (0, 0))
    return [x, up], [list(kernel.shape[2:]), *params], result


def pooling(draw: Draw) -> tuple[Any, Any, list[Any]]:
    """An input, zeros of the pooled shape, and the params."""
    sizes, window, params = placed(draw, pooled=True)
    dtype, planes = (
        draw(st.sampled_from(["float32", "float64"])),
        (draw(st.integers(0, 2)), draw(st.integers(1, 2))),
    )
    x = floats(draw, (*planes, *sizes), dtype)
    return x, np.zeros((*planes, *counts_of(sizes, window, params)), dtype), [window, *params]


def _max(x: Any, result: Any, params: list[Any]) -> Any:
    source = padded(x, params[2], -np.inf)
    for at, elements in windows(x.shape[2:], params[0], (params[1], params[2], params[3])):
        result[(..., *at)] = source[(..., *elements)].max(axis=tuple(range(2, x.ndim)))
    return result


def max_pool(draw: Draw) -> Case:
    x, result, params = pooling(draw)
    return [x], params, _max(x, result, params)


def max_pool_input(draw: Draw) -> Case:
    x, result, params = pooling(draw)
    most = _max(x, result, params)
    up = floats(draw, most.shape, x.dtype.name)
    source, found = padded(x, params[2], -np.inf), np.zeros_like(padded(x, params[2]))
    for at, elements in windows(x.shape[2:], params[0], (params[1], params[2], params[3])):
        for plane in np.ndindex(*x.shape[:2]):
            part = source[(*plane, *elements)]
            found[(*plane, *elements)][np.unravel_index(part.argmax(), part.shape)] += up[(*plane, *at)]
    return [x, most, up], params, inside(found, params[2])


def sum_pool(draw: Draw) -> Case:
    x, result, params = pooling(draw)
    source = padded(x, params[2])
    for at, elements in windows(x.shape[2:], params[0], (params[1], params[2], params[3])):
        result[(..., *at)] = source[(..., *elements)].sum(axis=tuple(range(2, x.ndim)))
    return [x], params, result


def sum_pool_input(draw: Draw) -> Case:
    x, pooled, params = pooling(draw)
    up = floats(draw, pooled.shape, x.dtype.name)
    found = np.zeros_like(padded(x, params[2]))
    for at, elements in windows(x.shape[2:], params[0], (params[1], params[2], params[3])):
        found[(..., *elements)] += up[(..., *at)].reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return [up], [list(x.shape[2:]), *params], inside(found, params[2])


CASES: dict[str, Callable[[Draw], Case]] = {
    "conv": conv,
    "conv_input": conv_input,
    "conv_kernel": conv_kernel,
    "max_pool": max_pool,
    "max_pool_input": max_pool_input,
    "sum_pool": sum_pool,
    "sum_pool_input": sum_pool_input,
}
"""By operation: operands, params, and what they give."""


def _twice(x: Any, kernel: Any) -> Any:
    """The gradient of a convolution, by both: what its own gradient is computed from."""
    by_input, by_kernel = pt.grad(lambda pair: (pt.conv2d(pair[0], pair[1], stride=2, padding=1) ** 2).sum())(
        [x, kernel]
    )
    return pt.concatenate([by_input.flatten(), by_kernel.flatten()])


GRADIENTS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "conv": (lambda x, w: pt.conv2d(x, w, stride=2, padding=1, groups=2), [(2, 2, 4, 3), (2, 1, 2, 2)]),
    "conv bias": (
        lambda x, w, b: pt.conv1d(x, w, b, dilation=2, padding="same"),
        [(1, 2, 5), (2, 2, 3), (2,)],
    ),
    "conv twice": (_twice, [(1, 2, 3, 3), (2, 2, 2, 2)]),
    "conv_input": (
        lambda x, w: pt.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        [(1, 2, 2, 2), (2, 1, 3, 3)],
    ),
    "conv_kernel": (lambda x, w: pt.grad(lambda k: (pt.conv1d(x, k) ** 3).sum())(w), [(2, 1, 4), (2, 1, 2)]),
    "max_pool": (lambda x: pt.max_pool2d(x, 2, stride=1, padding=1), [(1, 2, 3, 3)]),
    "sum_pool": (lambda x: pt.avg_pool2d(x, (2, 3), padding=1, stride=1), [(1, 2, 3, 3)]),
    "sum_pool_input": (pt.grad(lambda a: (pt.avg_pool1d(a, 2) ** 3).sum()), [(1, 2, 4)]),
}
"""By operation: what it is tried by, and the shapes of that function's arrays."""
