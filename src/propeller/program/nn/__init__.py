"""Networks whose parameters are a model's named tensors: layers with PyTorch's names and layouts, initialisers, and a step of training."""

from typing import TYPE_CHECKING, Never

from propeller.program.nn import hints, initialisers
from propeller.program.nn.layers import (
    AvgPool2d,
    Conv1d,
    Conv2d,
    ConvTranspose1d,
    ConvTranspose2d,
    Flatten,
    Linear,
    MaxPool2d,
    Reshape,
)
from propeller.program.nn.module import Module, ModuleList, Parameter, Sequential
from propeller.program.nn.norms import BatchNorm1d, BatchNorm2d, Dropout, GroupNorm, LayerNorm
from propeller.program.nn.sequences import GRU, LSTM, Embedding, MultiheadAttention
from propeller.program.nn.training import loss_and_gradients, training_step

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Never:
        raise AttributeError(f"{__name__} has no {name!r}{hints.hint(name, globals())}")


__all__ = [
    "GRU",
    "LSTM",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "MultiheadAttention",
    "Parameter",
    "Reshape",
    "Sequential",
    "initialisers",
    "loss_and_gradients",
    "training_step",
]
