"""A step of training, as one traced function."""

from collections.abc import Callable, Mapping
from typing import Any

from propeller.program.nn.module import Module
from propeller.program.optim import Number, Optimizer
from propeller.tensors.array import Array
from propeller.tensors.grad import value_and_grad
from propeller.tensors.jit import jit
from propeller.tensors.operations.drawing import KEY
from propeller.tensors.shapes import TensorError

Loss = Callable[[Any, Any], Array]
"""``(output, target)`` → one number."""

Correct = Callable[[dict[str, Any], Mapping[str, Any]], Mapping[str, Any]]
"""``(gradients, weights)`` → the gradients with what the strategy adds: ``ctx.correct``."""


def loss_and_gradients(
    net: Module, loss: Loss, model: Mapping[str, Any], x: Any, y: Any, key: Array
) -> tuple[Array, dict[str, Any]]:
    """The loss of a batch, and its gradients by the tensors of the model that are trained; running statistics change in place.

    Args:
        net: the network.
        loss: such as ``pt.cross_entropy``.
        model: its tensors.
        x: what the network is applied to.
        y: what the loss compares its output with.
        key: for what is drawn at random, another one for each step.

    Raises:
        TensorError: The model lacks a tensor, or shapes do not fit.
    """

    def of(weights: dict[str, Any]) -> tuple[Array, dict[str, Array]]:
        output, changed = net.train({**model, **weights}, x, key=key)
        return loss(output, y), changed

    (value, changed), gradients = value_and_grad(of)(net.trained(model))
    for name, array in changed.items():
        model[name][...] = array
    return value, gradients


def training_step(net: Module, loss: Loss, optimizer: Optimizer) -> Callable[..., Array]:
    """One step of training as a function under ``jit``: ``step(model, state, x, y, key, correct=None, lr=None) -> loss``.

    It changes the model and the optimizer's state in place. ``correct`` is ``ctx.correct``, with which a program does its part of FedProx, SCAFFOLD
    and others; ``lr`` is another learning rate than the optimizer's.
    """

    @jit
    def step(
        model: dict[str, Any],
        state: dict[str, Array],
        x: Any,
        y: Any,
        key: Array | None = None,
        correct: Correct | None = None,
        lr: Number | None = None,
    ) -> Array:
        if not isinstance(key, Array) or key.spec != KEY:
            raise TensorError(
                "step(model, state, x, y, key, correct, lr): the key is missing: pass source.key() of source = pt.random(ctx.seed), "
                "another one for each step"
            )
        value, gradients = loss_and_gradients(net, loss, model, x, y, key)
        if correct is not None:
            gradients = dict(correct(gradients, net.trained(model)))
        optimizer.step(model, gradients, state, lr)
        return value

    return step
