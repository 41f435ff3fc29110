"""First values of parameters, as PyTorch's layers have them by default."""

import math

from propeller.program.nn.module import Initialiser
from propeller.tensors.array import Array
from propeller.tensors.functions import full
from propeller.tensors.functions import ones as _ones
from propeller.tensors.functions import zeros as _zeros
from propeller.tensors.randomness import Random
from propeller.tensors.shapes import elements


def zeros(_source: Random, shape: tuple[int, ...]) -> Array:
    """Zeros."""
    return _zeros(shape)


def ones(_source: Random, shape: tuple[int, ...]) -> Array:
    """Ones."""
    return _ones(shape)


def counter(_source: Random, shape: tuple[int, ...]) -> Array:
    """Zeros of int64, for what counts."""
    return full(shape, 0, "int64")


def normal(std: float = 1.0, mean: float = 0.0) -> Initialiser:
    """Normal numbers."""
    return lambda source, shape: source.normal(shape) * std + mean


def uniform(low: float, high: float) -> Initialiser:
    """Numbers between two bounds, each as likely as any other."""
    return lambda source, shape: source.uniform(shape) * (high - low) + low


def fan_in_uniform(fan_in: int) -> Initialiser:
    """Between -1 / sqrt(fan_in) and that: what PyTorch's linear layers and convolutions begin with."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return uniform(-bound, bound)


def kaiming_normal(source: Random, shape: tuple[int, ...]) -> Array:
    """He et al., Delving Deep into Rectifiers, 2015: for layers before a ReLU; ``shape`` begins with the outputs."""
    return source.normal(shape) * math.sqrt(2 / max(elements(shape[1:]), 1))


def xavier_uniform(source: Random, shape: tuple[int, ...]) -> Array:
    """Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010."""
    field = elements(shape[2:])
    bound = math.sqrt(6 / max((shape[0] + shape[1]) * field, 1))
    return source.uniform(shape) * (2 * bound) - bound
