"""Layers: linear, convolutions, pooling and changes of shape, with the parameters and the arguments of PyTorch's of the same names."""

from collections.abc import Sequence

from propeller.program.nn import initialisers
from propeller.program.nn.module import Module, Parameter
from propeller.tensors import windows
from propeller.tensors.array import Array
from propeller.tensors.shapes import TensorError, elements

Sizes = int | Sequence[int]


class Linear(Module):
    """``x @ weight.T + bias``: ``weight`` is [out, in], ``bias`` [out]; ``x`` ends with an axis of ``in``."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        first = initialisers.fan_in_uniform(in_features)
        self.weight = Parameter((out_features, in_features), first)
        self.bias = Parameter((out_features,), first) if bias else None

    def forward(self, x: Array) -> Array:
        """Of [..., in] the [..., out]."""
        result: Array = x @ self["weight"].T
        return result if self.bias is None else result + self["bias"]


class _Conv(Module):
    """What convolutions have in common: ``weight`` is [out, in / groups, sizes…], ``bias`` [out]."""

    _axes, _function = 0, ""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        *,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        self._options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        sizes = _sizes(kernel_size, self._axes)
        self._declare((out_channels, _divided(in_channels, groups), *sizes), out_channels, bias=bias)

    def _declare(self, shape: tuple[int, ...], out: int, *, bias: bool) -> None:
        first = initialisers.fan_in_uniform(elements(shape[1:]))
        self.weight = Parameter(shape, first)
        self.bias = Parameter((out,), first) if bias else None

    def forward(self, x: Array) -> Array:
        """Of [n, in, sizes…] the [n, out, sizes…]."""
        result: Array = getattr(windows, self._function)(
            x, self["weight"], None if self.bias is None else self["bias"], **self._options
        )
        return result


class Conv1d(_Conv):
    """``pt.conv1d`` with parameters: ``Conv1d(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True)``."""

    _axes, _function = 1, "conv1d"


class Conv2d(_Conv):
    """``pt.conv2d`` with parameters: ``Conv2d(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True)``."""

    _axes, _function = 2, "conv2d"


class _ConvTranspose(_Conv):
    """What transposed convolutions have in common: ``weight`` is [in, out / groups, sizes…], ``bias`` [out]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        *,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
    ) -> None:
        self._options = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "dilation": dilation,
        }
        sizes = _sizes(kernel_size, self._axes)
        self._declare((in_channels, _divided(out_channels, groups), *sizes), out_channels, bias=bias)


class ConvTranspose1d(_ConvTranspose):
    """``pt.conv_transpose1d`` with parameters."""

    _axes, _function = 1, "conv_transpose1d"


class ConvTranspose2d(_ConvTranspose):
    """``pt.conv_transpose2d`` with parameters."""

    _axes, _function = 2, "conv_transpose2d"


class MaxPool2d(Module):
    """``pt.max_pool2d`` as a layer."""

    def __init__(
        self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1
    ) -> None:
        self._place = kernel_size, stride, padding, dilation

    def forward(self, x: Array) -> Array:
        """Of [n, channels, height, width] the largest of each window."""
        return windows.max_pool2d(x, *self._place)


class AvgPool2d(Module):
    """``pt.avg_pool2d`` as a layer."""

    def __init__(self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> None:
        self._place = kernel_size, stride, padding

    def forward(self, x: Array) -> Array:
        """Of [n, channels, height, width] the mean of each window."""
        return windows.avg_pool2d(x, *self._place)


class Flatten(Module):
    """All axes but the first as one."""

    def forward(self, x: Array) -> Array:
        """Of [n, sizes…] the [n, elements]."""
        return x.reshape(x.shape[0], elements(x.shape[1:]))


class Reshape(Module):
    """Each sample in another shape: ``Reshape(1, 28, 28)`` makes images of rows of 784."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape

    def forward(self, x: Array) -> Array:
        """Of [n, …] the [n, *shape]."""
        return x.reshape(x.shape[0], *self._shape)


def _sizes(size: Sizes, axes: int) -> tuple[int, ...]:
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(sizes) != axes:
        raise TensorError(f"a kernel of {axes} dimensions has one size or {axes}, got {size!r}")
    return sizes


def _divided(channels: int, groups: int) -> int:
    if groups < 1 or channels % groups:
        raise TensorError(f"{groups} groups do not divide {channels} channels")
    return channels // groups
