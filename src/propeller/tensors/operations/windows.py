"""Operations on windows that slide over the last axes: convolutions, and the largest or the sum in each window.

Arrays are laid out as in PyTorch: samples, channels, then one spatial axis or more; kernels are output channels, input channels of a group, then the
spatial axes. A convolution is a cross-correlation, as everywhere in the field (Dumoulin and Visin, A guide to convolution arithmetic for deep
learning, 2016). Each is linear in either operand, so ``conv`` and its two gradients are each other's gradients.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from propeller.tensors.operations.elementwise import larger
from propeller.tensors.operations.flat import strides_of
from propeller.tensors.operations.operation import Kernel, Operation, OperationCall, Record
from propeller.tensors.shapes import Spec, TensorError, elements, floating, promote, shape_of


@dataclass(frozen=True)
class Windows:
    """Where windows lie: for each spatial axis their size, the distance of neighbours, what is added at both ends, and the gaps in a window.

    Attributes:
        sizes: of the input, by spatial axis.
        window: elements of a window.
        strides: from one window to the next.
        padding: how many are added before and behind.
        dilation: from one element of a window to the next.
    """

    sizes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(
            (size + sum(pad) - (wide - 1) * gap - 1) // step + 1
            for size, wide, step, pad, gap in zip(
                self.sizes, self.window, self.strides, self.padding, self.dilation, strict=True
            )
        )

    @property
    def is_padded(self) -> bool:
        """Whether anything is added."""
        return any(map(any, self.padding))

    def taps(self) -> Iterator[tuple[slice, ...]]:
        """For each element of a window, in C order, where that element of all windows is in the padded input."""
        for place in itertools.product(*map(range, self.window)):
            yield tuple(
                slice(at * gap, at * gap + (count - 1) * step + 1, step)
                for at, gap, count, step in zip(place, self.dilation, self.counts, self.strides, strict=True)
            )


def read_windows(name: str, sizes: Sequence[int], window: Sequence[int], params: Sequence[Any]) -> Windows:
    """Windows over an input, from what came with an operation: ``[strides, padding, dilation]``.

    Raises:
        TensorError: They are none, or do not fit into the input.
    """
    strides, padding, dilation = params
    pairs = [shape_of(name, pair) for pair in padding] if isinstance(padding, list | tuple) else [()]
    steps, gaps = shape_of(name, strides), shape_of(name, dilation)
    if not len(sizes) == len(window) == len(steps) == len(pairs) == len(gaps) > 0:
        raise TensorError(
            f"{name}: {len(sizes)} spatial axes take as many sizes of the window, strides, paddings and dilations; got "
            f"{list(window)}, {strides!r:.40}, {padding!r:.40} and {dilation!r:.40}"
        )
    if 0 in steps or 0 in gaps or 0 in window:
        raise TensorError(f"{name}: windows, strides and dilations are 1 or more")
    if any(len(pair) != 2 for pair in pairs):
        raise TensorError(f"{name}: a padding is what is added before and behind, for each spatial axis")
    found = Windows(tuple(sizes), tuple(window), steps, tuple((pair[0], pair[1]) for pair in pairs), gaps)
    if min(found.counts) < 1:
        raise TensorError(
            f"{name}: a window of {list(window)} (dilation {list(gaps)}) is larger than {list(sizes)} with padding "
            f"{[list(pair) for pair in found.padding]}"
        )
    return found


# What they yield --------------------------------------------------------------------------------------------


def _float_of(name: str, specs: Sequence[Spec]) -> str:
    dtype = specs[0][0] if len(specs) == 1 else promote(specs[0][0], specs[1][0])
    if floating(dtype) != dtype or any(not shape for _, shape in specs):
        raise TensorError(
            f"{name} takes arrays of float32 or float64, got {' and '.join(dtype for dtype, _ in specs)}; use astype"
        )
    return dtype


def _samples(name: str, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    if len(shape) < 3:
        raise TensorError(
            f"{name} takes [samples, channels, sizes…], got {list(shape)}; reshape(n, channels, height, width) makes images of rows"
        )
    return shape[0], shape[1], shape[2:]


def _groups(name: str, groups: Any, inputs: int, outputs: int) -> int:
    if type(groups) is not int or groups < 1 or inputs % groups or outputs % groups:
        raise TensorError(f"{name}: {groups!r:.40} groups do not divide {inputs} channels into {outputs}")
    return groups


def conv_windows(name: str, specs: Sequence[Spec], params: Any) -> Windows:
    """The windows of ``conv``, from the specs of its operands.

    Raises:
        TensorError: It does not take these.
    """
    *place, groups = params
    count, channels, sizes = _samples(name, specs[0][1])
    del count
    kernel = specs[1][1]
    if len(kernel) != len(specs[0][1]):
        raise TensorError(
            f"{name}: a kernel for {list(specs[0][1])} is [channels out, channels in, sizes…] of {len(sizes)} spatial axes, got {list(kernel)}"
        )
    _groups(name, groups, channels, kernel[0])
    if kernel[1] * groups != channels:
        raise TensorError(
            f"{name}: the kernel {list(kernel)} takes {kernel[1] * groups} channels, {list(specs[0][1])} has {channels}"
        )
    return read_windows(name, sizes, kernel[2:], place)


def _convolved(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype = _float_of(name, specs)
    windows = conv_windows(name, specs, params)
    return dtype, (specs[0][1][0], specs[1][1][0], *windows.counts)


def _input_of(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """Of ``conv_input``, whose params begin with the sizes of the input."""
    dtype = _float_of(name, specs)
    sizes, *rest = params
    up, kernel = specs[0][1], specs[1][1]
    count, channels, _ = _samples(name, up)
    if len(kernel) != len(up):
        raise TensorError(f"{name}: the kernel {list(kernel)} does not fit {list(up)}")
    groups = _groups(name, rest[-1], channels, channels)
    shape = (count, kernel[1] * groups, *shape_of(name, sizes))
    _require_same(name, up, _convolved(name, [(dtype, shape), specs[1]], rest)[1])
    return dtype, shape


def _kernel_of(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """Of ``conv_kernel``, whose params begin with the sizes of the kernel."""
    dtype = _float_of(name, specs)
    sizes, *rest = params
    (_, shape), (_, up) = specs
    _, channels, _ = _samples(name, shape)
    groups = _groups(name, rest[-1], channels, _samples(name, up)[1])
    kernel = (up[1], channels // groups, *shape_of(name, sizes))
    _require_same(name, up, _convolved(name, [specs[0], (dtype, kernel)], rest)[1])
    return dtype, kernel


def _require_same(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if given != wanted:
        raise TensorError(
            f"{name}: {list(given)} is not {list(wanted)}, what the convolution of this input gives"
        )


def pool_windows(name: str, spec: Spec, params: Any) -> Windows:
    """The windows of pooling, whose params are ``[window, strides, padding, dilation]``.

    Raises:
        TensorError: They are none.
    """
    window, *place = params
    windows = read_windows(name, _samples(name, spec[1])[2], shape_of(name, window), place)
    if any(
        max(pad) > ((wide - 1) * gap + 1) // 2
        for pad, wide, gap in zip(windows.padding, windows.window, windows.dilation, strict=True)
    ):
        raise TensorError(f"{name}: a padding is at most half the window")
    return windows


def _pooled(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype = _float_of(name, specs)
    return dtype, (*specs[0][1][:2], *pool_windows(name, specs[0], params).counts)


def _unpooled(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """Of ``sum_pool_input``, whose params begin with the sizes of the input."""
    dtype = _float_of(name, specs)
    sizes, *rest = params
    count, channels, _ = _samples(name, specs[0][1])
    shape = (count, channels, *shape_of(name, sizes))
    _require_same(name, specs[0][1], _pooled(name, [(dtype, shape)], rest)[1])
    return dtype, shape


def _chosen(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """Of ``max_pool_input``: the input's spec."""
    (dtype, shape), *others = specs
    wanted = _pooled(name, specs[:1], params)[1]
    for other in others:
        _require_same(name, other[1], wanted)
    return dtype, shape


# Gradients --------------------------------------------------------------------------------------------------


def _conv_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x, kernel = call.operands
    return [
        record("conv_input", up, kernel, params=[list(x.shape[2:]), *call.params]),
        record("conv_kernel", x, up, params=[list(kernel.shape[2:]), *call.params]),
    ]


def _conv_input_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x, kernel = call.operands
    params = call.params[1:]
    return [
        record("conv", up, kernel, params=params),
        record("conv_kernel", up, x, params=[list(kernel.shape[2:]), *params]),
    ]


def _conv_kernel_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x, y = call.operands
    params = call.params[1:]
    return [
        record("conv_input", y, up, params=[list(x.shape[2:]), *params]),
        record("conv", x, up, params=params),
    ]


def _max_pool_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    return [record("max_pool_input", call.operands[0], call.result, up, params=call.params)]


def _sum_pool_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x = call.operands[0]
    return [record("sum_pool_input", up, params=[list(x.shape[2:]), *call.params])]


def _sum_pool_input_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    return [record("sum_pool", up, params=call.params[1:])]


# Kernels in plain Python ------------------------------------------------------------------------------------


def _pairs(windows: Windows) -> list[list[tuple[int, int]]]:
    """For each element of a window: which windows have it inside the input, and where in the input it is."""
    found = []
    counts, strides = windows.counts, strides_of(windows.sizes)
    outputs = list(itertools.product(*map(range, counts)))
    for place in itertools.product(*map(range, windows.window)):
        pairs = []
        for number, output in enumerate(outputs):
            at = [
                to * step + tap * gap - pad[0]
                for to, step, tap, gap, pad in zip(
                    output, windows.strides, place, windows.dilation, windows.padding, strict=True
                )
            ]
            if all(0 <= each < size for each, size in zip(at, windows.sizes, strict=True)):
                pairs.append((number, sum(each * stride for each, stride in zip(at, strides, strict=True))))
        found.append(pairs)
    return found


def _products(
    windows: Windows, count: int, kernel: tuple[int, ...], groups: int
) -> Iterator[tuple[int, int, int]]:
    """Of a convolution every product: where its output, its input and its element of the kernel are."""
    outputs, inputs = kernel[0], kernel[1]
    place, area = elements(windows.counts), elements(windows.sizes)
    pairs = _pairs(windows)
    for sample, output, channel in itertools.product(range(count), range(outputs), range(inputs)):
        source = sample * inputs * groups + output // (outputs // groups) * inputs + channel
        weight = (output * inputs + channel) * len(pairs)
        for tap, places in enumerate(pairs):
            for to, at in places:
                yield (sample * outputs + output) * place + to, source * area + at, weight + tap


def _conv(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    products = list(_products(conv_windows("conv", specs, params), specs[0][1][0], specs[1][1], params[-1]))

    def kernel(x: list[Any], weights: list[Any]) -> list[Any]:
        result = [0.0] * elements(out[1])
        for to, at, weight in products:
            result[to] += x[at] * weights[weight]
        return result

    return kernel


def _conv_input(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = conv_windows("conv_input", [out, specs[1]], params[1:])
    products = list(_products(windows, out[1][0], specs[1][1], params[-1]))

    def kernel(up: list[Any], weights: list[Any]) -> list[Any]:
        result = [0.0] * elements(out[1])
        for to, at, weight in products:
            result[at] += up[to] * weights[weight]
        return result

    return kernel


def _conv_kernel(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = conv_windows("conv_kernel", [specs[0], out], params[1:])
    products = list(_products(windows, specs[0][1][0], out[1], params[-1]))

    def kernel(x: list[Any], up: list[Any]) -> list[Any]:
        result = [0.0] * elements(out[1])
        for to, at, weight in products:
            result[weight] += x[at] * up[to]
        return result

    return kernel


def _planes(spec: Spec, windows: Windows) -> Iterator[tuple[int, int]]:
    """Where the output and the input of each channel of each sample begin."""
    place, area = elements(windows.counts), elements(windows.sizes)
    return ((plane * place, plane * area) for plane in range(spec[1][0] * spec[1][1]))


def _max_pool(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("max_pool", specs[0], params)
    pairs = _pairs(windows)

    def kernel(x: list[Any]) -> list[Any]:
        result = [-math.inf] * elements(out[1])
        for to, at in _planes(out, windows):
            for number, place in itertools.chain.from_iterable(pairs):
                result[to + number] = larger(result[to + number], x[at + place])
        return result

    return kernel


def _max_pool_input(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("max_pool_input", specs[0], params)
    pairs = _pairs(windows)

    def kernel(x: list[Any], most: list[Any], up: list[Any]) -> list[Any]:
        result = [0.0] * elements(out[1])
        for to, at in _planes(specs[1], windows):
            given = set()
            for number, place in itertools.chain.from_iterable(pairs):
                if number not in given and x[at + place] == most[to + number]:
                    given.add(number)
                    result[at + place] += up[to + number]
        return result

    return kernel


def _sum_pool(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("sum_pool", specs[0], params)
    pairs = _pairs(windows)

    def kernel(x: list[Any]) -> list[Any]:
        result = [0.0] * elements(out[1])
        for to, at in _planes(out, windows):
            for number, place in itertools.chain.from_iterable(pairs):
                result[to + number] += x[at + place]
        return result

    return kernel


def _sum_pool_input(specs: Sequence[Spec], params: Any, out: Spec) -> Kernel:
    windows = pool_windows("sum_pool_input", out, params[1:])
    pairs = _pairs(windows)

    def kernel(up: list[Any]) -> list[Any]:
        result = [0.0] * elements(out[1])
        for to, at in _planes(specs[0], windows):
            for number, place in itertools.chain.from_iterable(pairs):
                result[at + place] += up[to + number]
        return result

    return kernel


# The operations ---------------------------------------------------------------------------------------------

_CONV = "`[strides, paddings, dilations, groups]`, a padding as `[before, behind]`"
_POOL = "`[window, strides, paddings, dilations]`"

OPERATIONS = (
    Operation(
        name="conv",
        operands=2,
        params=_CONV,
        doc="of samples `[n, channels, sizes…]` and a kernel `[channels out, channels in of a group, sizes…]` the cross-correlation",
        infer=_convolved,
        gradient=_conv_gradient,
        kernel=_conv,
    ),
    Operation(
        name="conv_input",
        operands=2,
        params="`[sizes of the input, …]`, then as of `conv`",
        doc="of the gradient of a `conv` and its kernel the gradient by its input: the transposed convolution",
        infer=_input_of,
        gradient=_conv_input_gradient,
        kernel=_conv_input,
    ),
    Operation(
        name="conv_kernel",
        operands=2,
        params="`[sizes of the kernel, …]`, then as of `conv`",
        doc="of the input and the gradient of a `conv` the gradient by its kernel",
        infer=_kernel_of,
        gradient=_conv_kernel_gradient,
        kernel=_conv_kernel,
    ),
    Operation(
        name="max_pool",
        operands=1,
        params=_POOL,
        doc="the largest in each window of the last axes of `[n, channels, sizes…]`; what is added counts for nothing",
        infer=_pooled,
        gradient=_max_pool_gradient,
        kernel=_max_pool,
    ),
    Operation(
        name="max_pool_input",
        operands=3,
        params=_POOL,
        doc="of the input, the result and the gradient of a `max_pool` the gradient by its input: at the first of the largest",
        infer=_chosen,
        gradient=None,
        kernel=_max_pool_input,
    ),
    Operation(
        name="sum_pool",
        operands=1,
        params=_POOL,
        doc="the sum in each window, as `max_pool`",
        infer=_pooled,
        gradient=_sum_pool_gradient,
        kernel=_sum_pool,
    ),
    Operation(
        name="sum_pool_input",
        operands=1,
        params="`[sizes of the input, …]`, then as of `sum_pool`",
        doc="of the gradient of a `sum_pool` the gradient by its input",
        infer=_unpooled,
        gradient=_sum_pool_input_gradient,
        kernel=_sum_pool_input,
    ),
)
