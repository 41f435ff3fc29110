"""The operations on windows in NumPy: a convolution is a matrix product with the windows' elements in columns.

Chellapilla, Puri and Simard, High Performance Convolutional Neural Networks for Document Processing, 2006. The columns of a few samples at a time, so
that they stay in the processor's cache and take no more than ``_COLUMN_BYTES``, whatever the batch is.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from propeller.tensors.operations import Kernel, KernelFactory
from propeller.tensors.operations.windows import Windows, conv_windows, pool_windows
from propeller.tensors.shapes import Spec, elements

_COLUMN_BYTES = 2 << 20
"""What the columns take at one time; those of one sample, if these are more."""


class _Columns:
    """The elements of all windows of a few samples, as ``[samples, groups, window elements of the channels of a group, windows]``."""

    def __init__(self, windows: Windows, channels: int, groups: int, dtype: Any) -> None:
        self.windows, self.channels, self.groups, self.dtype = windows, channels, groups, dtype
        self.counts = windows.counts
        self.taps = list(windows.taps())
        self.rows = channels // groups * len(self.taps)
        # A window of one element that moves by one: the input is its own columns.
        self.is_input = len(self.taps) == 1 and set(windows.strides) == {1} and not windows.is_padded
        size = channels * len(self.taps) * elements(self.counts) * dtype.itemsize
        self.samples = max(1, _COLUMN_BYTES // max(size, 1))
        """How many samples there are at one time."""

    def parts(self, count: int) -> Iterator[slice]:
        """The samples in turns."""
        return (slice(at, min(at + self.samples, count)) for at in range(0, count, self.samples))

    def split(self, array: Any) -> Any:
        """``[samples, channels, sizes…]`` as ``[samples, groups, channels of a group, elements]``."""
        count, channels = array.shape[:2]
        return array.reshape(count, self.groups, channels // self.groups, elements(array.shape[2:]))

    def memory(self, count: int) -> Any:
        """For the columns of each turn: memory that is new in each turn costs more than to fill it."""
        if self.is_input:
            return None
        return np.empty((min(count, self.samples), self.channels, len(self.taps), *self.counts), self.dtype)

    def gather(self, x: Any, memory: Any) -> Any:
        """The columns of these samples."""
        if self.is_input:
            return self.split(np.ascontiguousarray(x, self.dtype))
        source, made = pad(x, self.windows, 0), memory[: len(x)]
        for number, tap in enumerate(self.taps):
            made[:, :, number] = source[(..., *tap)]
        return self.flat(made)

    def flat(self, memory: Any) -> Any:
        """Memory as the matrices of a product."""
        return memory.reshape(len(memory), self.groups, self.rows, elements(self.counts))

    def scatter(self, columns: Any, out: Any) -> None:
        """Add up columns where their elements came from."""
        if self.is_input:
            out[...] = columns.reshape(out.shape)
            return
        count = len(columns)
        parts = columns.reshape(count, self.channels, len(self.taps), *self.counts)
        with_padding(out, self.windows, lambda target: _add_taps(target, parts, self.taps))


def _add_taps(target: Any, parts: Any, taps: Sequence[tuple[slice, ...]]) -> None:
    for number, tap in enumerate(taps):
        target[(..., *tap)] += parts[:, :, number]


def pad(x: Any, windows: Windows, value: float) -> Any:
    """The input with what is added to it."""
    if not windows.is_padded:
        return x
    return np.pad(x, ((0, 0), (0, 0), *windows.padding), constant_values=value)


def with_padding(out: Any, windows: Windows, fill: Callable[[Any], None]) -> None:
    """Have zeros of the padded size filled, and keep in ``out`` what is not padding."""
    if not windows.is_padded:
        out[...] = 0
        fill(out)
        return
    sizes = [size + sum(each) for size, each in zip(windows.sizes, windows.padding, strict=True)]
    target = np.zeros((*out.shape[:2], *sizes), out.dtype)
    fill(target)
    inside: tuple[Any, ...] = tuple(
        slice(before, before + size) for (before, _), size in zip(windows.padding, windows.sizes, strict=True)
    )
    out[...] = target[(..., *inside)]


def _conv(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    columns = _Columns(conv_windows("conv", specs, params), specs[0][1][1], params[-1], np.dtype(out[0]))
    count, outputs = out[1][:2]
    grouped = (columns.groups, outputs // columns.groups, columns.rows)

    def kernel(x: Any, weights: Any) -> Any:
        result = np.empty(
            (count, columns.groups, outputs // columns.groups, elements(out[1][2:])), columns.dtype
        )
        matrix, memory = np.ascontiguousarray(weights, columns.dtype).reshape(grouped), columns.memory(count)
        for part in columns.parts(count):
            np.matmul(matrix, columns.gather(x[part], memory), out=result[part])
        return result.reshape(out[1])

    return kernel


def _conv_input(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = conv_windows("conv_input", [out, specs[1]], params[1:])
    columns = _Columns(windows, out[1][1], params[-1], np.dtype(out[0]))
    outputs = specs[1][1][0]
    grouped = (columns.groups, outputs // columns.groups, columns.rows)

    def kernel(up: Any, weights: Any) -> Any:
        result = np.empty(out[1], columns.dtype)
        matrix = np.ascontiguousarray(weights.reshape(grouped).transpose(0, 2, 1), columns.dtype)
        given, memory = columns.split(np.ascontiguousarray(up, columns.dtype)), columns.memory(len(up))
        for part in columns.parts(len(given)):
            target = None if memory is None else columns.flat(memory[: len(given[part])])
            columns.scatter(np.matmul(matrix, given[part], out=target), result[part])
        return result

    return kernel


def _conv_kernel(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = conv_windows("conv_kernel", [specs[0], out], params[1:])
    columns = _Columns(windows, specs[0][1][1], params[-1], np.dtype(out[0]))

    def kernel(x: Any, up: Any) -> Any:
        result = np.zeros((columns.groups, out[1][0] // columns.groups, columns.rows), columns.dtype)
        given, memory = columns.split(np.ascontiguousarray(up, columns.dtype)), columns.memory(len(x))
        for part in columns.parts(len(given)):
            result += np.matmul(given[part], columns.gather(x[part], memory).transpose(0, 1, 3, 2)).sum(
                axis=0
            )
        return result.reshape(out[1])

    return kernel


def _max_pool(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("max_pool", specs[0], params)
    first, *others = windows.taps()

    def kernel(x: Any) -> Any:
        source = pad(x, windows, -np.inf)
        result = np.array(source[(..., *first)], np.dtype(out[0]))
        for tap in others:
            np.maximum(result, source[(..., *tap)], out=result)
        return result

    return kernel


def _max_pool_input(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("max_pool_input", specs[0], params)
    taps = list(windows.taps())
    apart = all(
        step >= (wide - 1) * gap + 1
        for step, wide, gap in zip(windows.strides, windows.window, windows.dilation, strict=True)
    )

    def kernel(x: Any, most: Any, up: Any) -> Any:
        source, result = pad(x, windows, -np.inf), np.empty(out[1], np.dtype(out[0]))

        def fill(target: Any) -> None:
            free = np.ones(most.shape, np.bool_)
            for tap in taps:
                chosen = source[(..., *tap)] == most
                chosen &= free
                free ^= chosen  # what went to the first of the largest does not go to another
                if apart:
                    np.multiply(up, chosen, out=target[(..., *tap)])
                else:
                    target[(..., *tap)] += up * chosen

        with_padding(result, windows, fill)
        return result

    return kernel


def _sum_pool(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("sum_pool", specs[0], params)
    first, *others = windows.taps()

    def kernel(x: Any) -> Any:
        source = pad(x, windows, 0)
        result = np.array(source[(..., *first)], np.dtype(out[0]))
        for tap in others:
            result += source[(..., *tap)]
        return result

    return kernel


def _sum_pool_input(_specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("sum_pool_input", out, params[1:])
    taps = list(windows.taps())

    def kernel(up: Any) -> Any:
        result = np.empty(out[1], np.dtype(out[0]))

        def fill(target: Any) -> None:
            for tap in taps:
                target[(..., *tap)] += up

        with_padding(result, windows, fill)
        return result

    return kernel


KERNELS: dict[str, KernelFactory] = {
    "conv": _conv,
    "conv_input": _conv_input,
    "conv_kernel": _conv_kernel,
    "max_pool": _max_pool,
    "max_pool_input": _max_pool_input,
    "sum_pool": _sum_pool,
    "sum_pool_input": _sum_pool_input,
}
"""The kernel of every operation on windows, from its specs and params."""
