"""The operations on windows in NumPy: a convolution is a sum of matrix products, one for each row of its kernel.

To put all elements of all windows into columns of one matrix (Chellapilla, Puri and Simard, High Performance Convolutional Neural Networks for Document
Processing, 2006) writes each input as often as a window has elements. Here they are put side by side along all spatial axes but the first, so each is written as often as a row
of the kernel has elements; which rows of the input a row of the kernel meets is then a stretch of that memory, which the library of matrix products reads where it is.
It is done for a few samples at a time, so that what they take stays in the processor's cache, whatever the batch is.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from propeller.tensors.operations import Kernel, KernelFactory
from propeller.tensors.operations.windows import Windows, conv_windows, pool_windows
from propeller.tensors.shapes import Spec, elements

_STRETCH_BYTES = 1 << 20
"""What the stretches of a few samples take at one time; those of one sample, if these are more."""


class _Stretches:
    """The input of a convolution so that each row of the kernel meets one stretch of it.

    It is ``[samples, groups, channels of a group x elements of a kernel's row, rows x places in a row]``, a *row* being all spatial axes but the first. With
    a stride along the first, rows that are one stride apart are beside each other.
    """

    def __init__(self, windows: Windows, channels: int, groups: int, dtype: Any) -> None:
        windows = _with_rows(windows)
        self.windows, self.channels, self.groups, self.dtype = windows, channels, groups, dtype
        self.stride, gap = windows.strides[0], windows.dilation[0]
        self.taps = [tap[1:] for tap in windows.taps()][: elements(windows.window[1:])]
        self.places = elements(windows.counts[1:])
        self.wide = channels // groups * len(self.taps)
        starts = [number * gap for number in range(windows.window[0])]
        self.phases = sorted({start % self.stride for start in starts})
        high = windows.sizes[0] + sum(windows.padding[0])
        self.rows = -(-high // self.stride)
        """Rows of a phase, of which the last may not be there."""
        self.high = high
        self.length = windows.counts[0] * self.places
        begins = [
            (self.phases.index(start % self.stride) * self.rows + start // self.stride) * self.places
            for start in starts
        ]
        self.stretches = [slice(begin, begin + self.length) for begin in begins]
        """For each row of the kernel what it meets."""
        self.is_input = len(self.taps) == 1 and set(windows.strides) == {1} and not windows.is_padded
        """The input lies so already: rows of one element, that move by one."""
        size = channels * len(self.taps) * len(self.phases) * self.rows * self.places * dtype.itemsize
        self.samples = max(1, _STRETCH_BYTES // max(size, 1))
        """How many samples there are at one time."""

    def parts(self, count: int) -> Iterator[slice]:
        """The samples in turns."""
        return (slice(at, min(at + self.samples, count)) for at in range(0, count, self.samples))

    def split(self, array: Any) -> Any:
        """``[samples, channels, sizes…]`` as ``[samples, groups, channels of a group, elements]``."""
        count, channels = array.shape[:2]
        return array.reshape(count, self.groups, channels // self.groups, elements(array.shape[2:]))

    def memory(self, count: int) -> Any:
        """For each turn: memory that is new in each turn costs more than to fill it."""
        if self.is_input:
            return None
        shape = (self.channels, len(self.taps), len(self.phases), self.rows, *self.windows.counts[1:])
        return np.empty((min(count, self.samples), *shape), self.dtype)

    def products(self, count: int, wide: int, long: int) -> Any:
        """Memory for the products of each turn."""
        return np.empty((min(count, self.samples), self.groups, wide, long), self.dtype)

    def gather(self, x: Any, memory: Any) -> Any:
        """The stretches of these samples."""
        if self.is_input:
            return self.split(np.ascontiguousarray(x, self.dtype))
        source, made = pad(self._with_rows(x), self.windows, 0), memory[: len(x)]
        for target, place in self._pairs(made):
            target[...] = source[place]
        return self.flat(made)

    def flat(self, memory: Any) -> Any:
        """Memory as the matrices of a product."""
        return memory.reshape(len(memory), self.groups, self.wide, -1)

    def scatter(self, made: Any, out: Any) -> None:
        """Add up what is in memory where it came from."""

        def add(target: Any) -> None:
            for source, place in self._pairs(made):
                target[place] += source

        with_padding(self._with_rows(out), self.windows, add)

    def kernel_rows(self, weights: Any) -> Any:
        """``[channels out, channels in, sizes…]`` as ``[rows, groups, channels out of a group, channels in x elements of a row]``."""
        outputs = len(weights) // self.groups
        apart = np.asarray(weights, self.dtype).reshape(
            self.groups, outputs, self.channels // self.groups, len(self.stretches), len(self.taps)
        )
        return np.ascontiguousarray(apart.transpose(3, 0, 1, 2, 4)).reshape(
            len(self.stretches), self.groups, outputs, self.wide
        )

    def kernel_of(self, rows: Any, shape: tuple[int, ...]) -> Any:
        """The inverse, of ``[rows, groups, channels in x elements of a row, channels out of a group]``."""
        apart = rows.reshape(len(self.stretches), self.groups, -1, len(self.taps), shape[0] // self.groups)
        return np.ascontiguousarray(apart.transpose(1, 4, 2, 0, 3)).reshape(shape)

    def _with_rows(self, array: Any) -> Any:
        return array.reshape(*array.shape[:2], *self.windows.sizes)

    def _pairs(self, made: Any) -> Iterator[tuple[Any, Any]]:
        """What is filled in memory, with where its elements are in the padded input."""
        for number, tap in enumerate(self.taps):
            for index, phase in enumerate(self.phases):
                rows = slice(phase, None, self.stride)
                yield made[:, :, number, index, : -(-(self.high - phase) // self.stride)], (..., rows, *tap)


def _with_rows(windows: Windows) -> Windows:
    """Windows of one spatial axis as those of two, with one row."""
    if len(windows.sizes) > 1:
        return windows
    return Windows(
        (1, *windows.sizes),
        (1, *windows.window),
        (1, *windows.strides),
        ((0, 0), *windows.padding),
        (1, *windows.dilation),
    )


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
    rows = _Stretches(conv_windows("conv", specs, params), specs[0][1][1], params[-1], np.dtype(out[0]))
    count, outputs = out[1][:2]
    wide = outputs // rows.groups

    def kernel(x: Any, weights: Any) -> Any:
        result = np.empty((count, rows.groups, wide, rows.length), rows.dtype)
        matrices, memory = rows.kernel_rows(weights), rows.memory(count)
        products = rows.products(count, wide, rows.length)
        for part in rows.parts(count):
            given, target = rows.gather(x[part], memory), result[part]
            for number, stretch in enumerate(rows.stretches):
                product = products[: len(given)] if number else target
                np.matmul(matrices[number], given[..., stretch], out=product)
                if number:
                    target += product
        return result.reshape(out[1])

    return kernel


def _conv_input(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = conv_windows("conv_input", [out, specs[1]], params[1:])
    rows = _Stretches(windows, out[1][1], params[-1], np.dtype(out[0]))

    def kernel(up: Any, weights: Any) -> Any:
        result = np.empty(out[1], rows.dtype)
        matrices = rows.kernel_rows(weights).transpose(0, 1, 3, 2)
        given, memory = rows.split(np.ascontiguousarray(up, rows.dtype)), rows.memory(len(up))
        products = rows.products(len(up), rows.wide, rows.length)
        for part in rows.parts(len(given)):
            turn = given[part]
            made = rows.split(result[part]) if memory is None else rows.flat(memory[: len(turn)])
            made[...] = 0
            for number, stretch in enumerate(rows.stretches):
                product = products[: len(turn)] if number else made[..., stretch]
                np.matmul(matrices[number], turn, out=product)
                if number:
                    made[..., stretch] += product
            if memory is not None:
                rows.scatter(memory[: len(turn)], result[part])
        return result

    return kernel


def _conv_kernel(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = conv_windows("conv_kernel", [specs[0], out], params[1:])
    rows = _Stretches(windows, specs[0][1][1], params[-1], np.dtype(out[0]))
    wide = out[1][0] // rows.groups

    def kernel(x: Any, up: Any) -> Any:
        result = np.zeros((len(rows.stretches), rows.groups, rows.wide, wide), rows.dtype)
        given, memory = rows.split(np.ascontiguousarray(up, rows.dtype)), rows.memory(len(x))
        products = rows.products(len(x), rows.wide, wide)
        for part in rows.parts(len(given)):
            turn, source = given[part].transpose(0, 1, 3, 2), rows.gather(x[part], memory)
            for number, stretch in enumerate(rows.stretches):
                product = np.matmul(source[..., stretch], turn, out=products[: len(turn)])
                result[number] += product.sum(axis=0)
        return rows.kernel_of(result, out[1])

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
