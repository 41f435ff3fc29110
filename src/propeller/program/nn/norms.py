"""Normalising layers and dropout, with the parameters and the arguments of PyTorch's of the same names."""

from collections.abc import Sequence

from propeller.program.nn import initialisers
from propeller.program.nn.module import Module, Parameter
from propeller.tensors import normalisation, randomness
from propeller.tensors.array import Array
from propeller.tensors.shapes import TensorError, elements


class _BatchNorm(Module):
    """Each channel over the batch: Ioffe and Szegedy, 2015. ``weight``, ``bias``, ``running_mean``, ``running_var`` and ``num_batches_tracked``."""

    _ranks: tuple[int, ...] = ()

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Args: momentum: how much of the running statistics a batch replaces."""
        self.weight = Parameter((num_features,), initialisers.ones)
        self.bias = Parameter((num_features,), initialisers.zeros)
        self.running_mean = Parameter((num_features,), initialisers.zeros, trained=False)
        self.running_var = Parameter((num_features,), initialisers.ones, trained=False)
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
        if elements(x.shape) <= x.shape[1]:
            raise TensorError(
                f"{type(self).__name__}: one number for each channel has no variance, got {list(x.shape)}: train on batches of 2 or "
                "more, as batches(…, drop_last=True) makes them, or use GroupNorm"
            )
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

    def __init__(self, normalized_shape: int | Sequence[int], *, eps: float = 1e-5) -> None:
        sizes = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.weight = Parameter(sizes, initialisers.ones)
        self.bias = Parameter(sizes, initialisers.zeros)
        self._axes, self._eps = list(range(-len(sizes), 0)), eps

    def forward(self, x: Array) -> Array:
        """Of [..., shape…] the same."""
        return normalisation.layer_norm(x, self["weight"], self["bias"], axis=self._axes, eps=self._eps)


class GroupNorm(Module):
    """Each sample by itself, its channels in groups: Wu and He, 2018."""

    def __init__(self, num_groups: int, num_channels: int, *, eps: float = 1e-5) -> None:
        self.weight = Parameter((num_channels,), initialisers.ones)
        self.bias = Parameter((num_channels,), initialisers.zeros)
        self._groups, self._eps = num_groups, eps

    def forward(self, x: Array) -> Array:
        """Of [n, channels, sizes…] the same."""
        return normalisation.group_norm(x, self._groups, self["weight"], self["bias"], eps=self._eps)


class Dropout(Module):
    """While the network learns each element is 0 with a probability, and otherwise larger: Srivastava et al., 2014."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise TensorError(f"Dropout: p is from 0 to below 1, not {p!r:.40}")
        self._rate = p

    def forward(self, x: Array) -> Array:
        """The same outside of training."""
        if not self.training:
            return x
        key, fold = self.draw_key()
        return randomness.dropout(x, self._rate, key, fold)
