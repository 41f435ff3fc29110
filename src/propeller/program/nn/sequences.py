"""Layers for sequences: embeddings, recurrent layers and attention, with the parameters and the arguments of PyTorch's of the same names.

Sequences are [n, steps, features] (PyTorch's ``batch_first=True``).
"""

import math

from propeller.program.nn import initialisers
from propeller.program.nn.layers import Linear
from propeller.program.nn.module import Module, Parameter
from propeller.tensors.activations import sigmoid
from propeller.tensors.arranging import stack
from propeller.tensors.array import Array
from propeller.tensors.attention import scaled_dot_product_attention
from propeller.tensors.functions import tanh, zeros
from propeller.tensors.gathering import embedding
from propeller.tensors.scan import scan
from propeller.tensors.shapes import TensorError


class Embedding(Module):
    """A row of ``weight`` [count, width] for each integer."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        self.weight = Parameter((num_embeddings, embedding_dim), initialisers.normal())

    def forward(self, ids: Array) -> Array:
        """Of integers [...] the [..., width]."""
        return embedding(self["weight"], ids)


def _check_batch_first(layer: Module, batch_first: object) -> None:
    if batch_first is not True:
        raise TensorError(
            f"{type(layer).__name__}: batch_first is always true here: sequences are [n, steps, features]"
        )


class _Recurrent(Module):
    """What recurrent layers have in common: for each of their layers ``weight_ih_l0`` [gates of hidden, in], ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``."""

    _gates = 0

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, *, batch_first: bool = True
    ) -> None:
        if min(input_size, hidden_size, num_layers) < 1:
            raise TensorError(
                f"{type(self).__name__}: sizes and layers are 1 or more, got {input_size}, {hidden_size} and {num_layers}"
            )
        _check_batch_first(self, batch_first)
        first = initialisers.fan_in_uniform(hidden_size)
        for layer in range(num_layers):
            width = hidden_size if layer else input_size
            for name, shape in (
                ("weight_ih", (self._gates * hidden_size, width)),
                ("weight_hh", (self._gates * hidden_size, hidden_size)),
                ("bias_ih", (self._gates * hidden_size,)),
                ("bias_hh", (self._gates * hidden_size,)),
            ):
                setattr(self, f"{name}_l{layer}", Parameter(shape, first))
        self._hidden, self._layers = hidden_size, num_layers

    def _inputs(self, x: Array, layer: int) -> Array:
        """What the inputs give to the gates, of all steps at once: [steps, n, gates]."""
        if x.ndim != 3:
            raise TensorError(f"{type(self).__name__} takes [n, steps, features], got {list(x.shape)}")
        result: Array = x.transpose(1, 0, 2) @ self[f"weight_ih_l{layer}"].T + self[f"bias_ih_l{layer}"]
        return result

    def _gate(self, gates: Array, number: int) -> Array:
        return gates[:, number * self._hidden : (number + 1) * self._hidden]

    def _first(self, given: Array | None, layer: int, x: Array) -> Array:
        return zeros((x.shape[0], self._hidden)) if given is None else given[layer]


class LSTM(_Recurrent):
    """Long short-term memory: Hochreiter and Schmidhuber, 1997, as ``torch.nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)``."""

    _gates = 4

    def forward(
        self, x: Array, state: tuple[Array, Array] | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Outputs of the last layer [n, steps, hidden], and the state of each layer [layers, n, hidden], twice.

        Args:
            x: [n, steps, in].
            state: to begin with; zeros without it.
        """
        hidden, cells = state if state is not None else (None, None)
        last_hidden, last_cells = [], []
        for layer in range(self._layers):
            weight, bias = self[f"weight_hh_l{layer}"].T, self[f"bias_hh_l{layer}"]

            def step(
                carry: tuple[Array, Array], given: Array, weight: Array = weight, bias: Array = bias
            ) -> tuple[tuple[Array, Array], Array]:
                gates = given + carry[0] @ weight + bias
                kept, added = sigmoid(self._gate(gates, 1)), sigmoid(self._gate(gates, 0))
                cell = kept * carry[1] + added * tanh(self._gate(gates, 2))
                output = sigmoid(self._gate(gates, 3)) * tanh(cell)
                return (output, cell), output

            first = self._first(hidden, layer, x), self._first(cells, layer, x)
            (h, c), outputs = scan(step, first, self._inputs(x, layer))
            x = outputs.transpose(1, 0, 2)
            last_hidden.append(h)
            last_cells.append(c)
        return x, (stack(last_hidden), stack(last_cells))


class GRU(_Recurrent):
    """Gated recurrent units: Cho et al., 2014, as ``torch.nn.GRU(input_size, hidden_size, num_layers, batch_first=True)``."""

    _gates = 3

    def forward(self, x: Array, state: Array | None = None) -> tuple[Array, Array]:
        """Outputs of the last layer [n, steps, hidden], and the state of each layer [layers, n, hidden].

        Args:
            x: [n, steps, in].
            state: to begin with; zeros without it.
        """
        last = []
        for layer in range(self._layers):
            weight, bias = self[f"weight_hh_l{layer}"].T, self[f"bias_hh_l{layer}"]

            def step(
                h: Array, given: Array, weight: Array = weight, bias: Array = bias
            ) -> tuple[Array, Array]:
                own = h @ weight + bias
                reset = sigmoid(self._gate(given, 0) + self._gate(own, 0))
                kept = sigmoid(self._gate(given, 1) + self._gate(own, 1))
                new = tanh(self._gate(given, 2) + reset * self._gate(own, 2))
                output = new + kept * (h - new)
                return output, output

            h, outputs = scan(step, self._first(state, layer, x), self._inputs(x, layer))
            x = outputs.transpose(1, 0, 2)
            last.append(h)
        return x, stack(last)


class MultiheadAttention(Module):
    """Vaswani et al., Attention Is All You Need, 2017, as ``torch.nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)``.

    ``in_proj_weight`` [3 width, width], ``in_proj_bias``, ``out_proj.weight`` and ``out_proj.bias``.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, batch_first: bool = True) -> None:
        if num_heads < 1 or embed_dim % num_heads:
            raise TensorError(f"MultiheadAttention: {num_heads} heads do not divide a width of {embed_dim}")
        _check_batch_first(self, batch_first)
        bound = math.sqrt(6 / (4 * embed_dim))
        self.in_proj_weight = Parameter((3 * embed_dim, embed_dim), initialisers.uniform(-bound, bound))
        self.in_proj_bias = Parameter((3 * embed_dim,), initialisers.zeros)
        self.out_proj = Linear(embed_dim, embed_dim)
        self._width, self._heads = embed_dim, num_heads

    def forward(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        mask: Array | None = None,
        causal: bool = False,
    ) -> Array:
        """What each query finds: [n, queries, width].

        Args:
            query: [n, queries, width].
            key: [n, keys, width]; without it the queries are the keys (self-attention).
            value: as ``key``; without it the keys are the values.
            mask: true where a query may look, [queries, keys] or broadcast to [n, heads, queries, keys]; or floats that are added.
            causal: a query looks at keys up to its own place alone.
        """
        key = query if key is None else key
        value = key if value is None else value
        weight, bias, width = self["in_proj_weight"], self["in_proj_bias"], self._width
        parts = [
            self._split(each @ weight[at * width : (at + 1) * width].T + bias[at * width : (at + 1) * width])
            for at, each in enumerate((query, key, value))
        ]
        found = scaled_dot_product_attention(*parts, mask=mask, causal=causal)
        joined = found.transpose(0, 2, 1, 3).reshape(query.shape)
        result: Array = self.out_proj(joined)
        return result

    def _split(self, x: Array) -> Array:
        """Of [n, steps, width] the [n, heads, steps, width of a head]."""
        count, steps, width = x.shape
        return x.reshape(count, steps, self._heads, width // self._heads).transpose(0, 2, 1, 3)
