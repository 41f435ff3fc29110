"""Normalising layers and dropout, with the parameters of PyTorch's of the same names."""

from collections.abc import Sequence

from propeller.program.nn import initialisers
from propeller.program.nn.module import Module, Parameter
from propeller.tensors import normalisation, randomness
from propeller.tensors.array import Array
from propeller.tensors.shapes import TensorError


class _BatchNorm(Module):
    """Each channel over the batch: Ioffe and Szegedy, 2015. ``weight``, ``bias``, ``running_mean``, ``running_var`` and ``num_batches_tracked``."""

    _ranks: tuple[int, ...] = ()

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Args: momentum: how much of the running statistics a batch replaces."""
        self.weight = Parameter((channels,), initialisers.ones)
        self.bias = Parameter((channels,), initialisers.zeros)
        self.running_mean = Parameter((channels,), initialisers.zeros, trained=False)
        self.running_var = Parameter((channels,), initialisers.ones, trained=False)
        self.num_batches_tracked = Parameter((), initialisers.counter, trained=False)
        self._eps, self._momentum = eps, momentum

    def forward(self, x: Array) -> Array:
        """While the network learns by the batch's mean and variance, else by the running ones."""
        if x.ndim not in self._ranks:
            raise TensorError(
                f"{type(self).__name__} takes arrays of {self._ranks[-1]} dimensions, got {list(x.shape)}"
            )
        mean, var = self["running_mean"], self["running_var"]
        weight, bias = self["weight"], self["bias"]
        if not self.training:
            return normalisation.batch_norm(x, weight, bias, mean=mean, var=var, eps=self._eps)[0]
        result, batch_mean, batch_var = normalisation.batch_norm(x, weight, bias, eps=self._eps)
        rate = self._momentum
        self.change("running_mean", mean * (1 - rate) + batch_mean * rate)
        self.change("running_var", var * (1 - rate) + batch_var * rate)
        self.change("num_batches_tracked", self["num_batches_tracked"] + 1)
        return result


class BatchNorm1d(_BatchNorm):
    """Of [n, channels] or [n, channels, length]."""

    _ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Of [n, channels, height, width]."""

    _ranks = (4,)


class LayerNorm(Module):
    """Each sample by itself over its last axes: Ba et al., 2016. ``weight`` and ``bias`` have the shape of these."""

    def __init__(self, shape: int | Sequence[int], *, eps: float = 1e-5) -> None:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        self.weight = Parameter(sizes, initialisers.ones)
        self.bias = Parameter(sizes, initialisers.zeros)
        self._axes, self._eps = list(range(-len(sizes), 0)), eps

    def forward(self, x: Array) -> Array:
        """Of [..., shape…] the same."""
        return normalisation.layer_norm(x, self["weight"], self["bias"], axis=self._axes, eps=self._eps)


class GroupNorm(Module):
    """Each sample by itself, its channels in groups: Wu and He, 2018."""

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-5) -> None:
        self.weight = Parameter((channels,), initialisers.ones)
        self.bias = Parameter((channels,), initialisers.zeros)
        self._groups, self._eps = groups, eps

    def forward(self, x: Array) -> Array:
        """Of [n, channels, sizes…] the same."""
        return normalisation.group_norm(x, self._groups, self["weight"], self["bias"], eps=self._eps)


class Dropout(Module):
    """While the network learns each element is 0 with a probability, and otherwise larger: Srivastava et al., 2014."""

    def __init__(self, rate: float = 0.5) -> None:
        if not 0 <= rate < 1:
            raise TensorError(f"Dropout: a rate is from 0 to below 1, not {rate!r:.40}")
        self._rate = rate

    def forward(self, x: Array) -> Array:
        """The same outside of training."""
        if not self.training:
            return x
        key, fold = self.draw_key()
        return randomness.dropout(x, self._rate, key, fold)
