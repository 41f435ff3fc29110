"""Optimizers and schedules of the learning rate: PyTorch's rules, on a model's named tensors.

An optimizer has no numbers of its own: ``init`` makes its state, a dict of arrays, and ``step`` changes the model and the state in place,
inside ``jit`` as outside of it.

    optimizer = optim.SGD(lr=0.01, momentum=0.9)
    state = optimizer.init(model)
    optimizer.step(model, gradients, state)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from propeller.tensors.array import Array
from propeller.tensors.functions import minimum, sqrt, zeros, zeros_like
from propeller.tensors.shapes import TensorError

Number = float | Array
"""A Python number, or an array without dimensions: what is passed into ``jit``."""


class Optimizer(ABC):
    """How a model is changed by its gradients.

    Attributes:
        lr: the learning rate, unless a step says another one.
    """

    def __new__(cls, *options: Any, **_named: Any) -> Self:
        """Say what is different to whoever passes the parameters, as in PyTorch."""
        if options and isinstance(options[0], Mapping | Iterable):
            raise TensorError(
                f"{cls.__name__}: an optimizer is not given the parameters here, write {cls.__name__}(lr=…): it is step that is given the model"
            )
        return super().__new__(cls)

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        _check("lr", lr, 0, math.inf)
        _check("weight_decay", weight_decay, 0, math.inf)
        self.lr, self.weight_decay = lr, weight_decay

    @abstractmethod
    def init(self, model: Mapping[str, Any]) -> dict[str, Array]:
        """What the optimizer keeps from step to step, before the first one."""

    @abstractmethod
    def _move(self, name: str, weight: Array, gradient: Array, state: dict[str, Array], lr: Number) -> None:
        """Change one tensor of the model in place, and what is kept of it."""

    def step(
        self,
        model: Mapping[str, Any],
        gradients: Mapping[str, Any],
        state: dict[str, Array],
        lr: Number | None = None,
    ) -> None:
        """Change those tensors of the model in place that have gradients, and the state.

        Args:
            model: arrays by name.
            gradients: by the same names, or some of them.
            state: as ``init`` made it.
            lr: another learning rate for this step, as a schedule gives it. Under ``jit`` pass it into the function.

        Raises:
            TensorError: A gradient is of a tensor that the model has not, or of another shape.
        """
        rate = self.lr if lr is None else lr
        for name, gradient in gradients.items():
            if name not in model:
                raise TensorError(f"the gradients have a tensor {name!r}, the model has none of that name")
            self._move(name, model[name], gradient, state, rate)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: Sutskever et al., On the importance of initialization and momentum, ICML 2013.

    The rule is PyTorch's ``torch.optim.SGD``: the decay is added to the gradient, and the learning rate multiplies the momentum's sum.
    """

    def __init__(
        self, lr: float, momentum: float = 0.0, *, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        """Args: nesterov: look ahead by the momentum."""
        super().__init__(lr, weight_decay)
        _check("momentum", momentum, 0, 1)
        if nesterov and not momentum:
            raise TensorError("nesterov needs a momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov

    def init(self, model: Mapping[str, Any]) -> dict[str, Array]:
        """A sum of gradients for each tensor, if there is momentum."""
        return _kept(model, "momentum") if self.momentum else {}

    def _move(self, name: str, weight: Array, gradient: Array, state: dict[str, Array], lr: Number) -> None:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        if self.momentum:
            total = state[f"momentum.{name}"]
            total *= self.momentum
            total += gradient
            gradient = gradient + self.momentum * total if self.nesterov else total
        weight -= lr * gradient


class Adam(Optimizer):
    """Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015; the decay is added to the gradient, as in PyTorch."""

    decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Args: betas: how much of the means of gradients and of their squares is kept; eps: added to the root of the latter."""
        super().__init__(lr, weight_decay)
        for beta in betas:
            _check("betas", beta, 0, 1)
        _check("eps", eps, 0, math.inf)
        self.betas, self.eps = betas, eps

    def init(self, model: Mapping[str, Any]) -> dict[str, Array]:
        """Two means for each tensor, and the number of steps."""
        return {"step": zeros(()), **_kept(model, "mean"), **_kept(model, "square")}

    def step(
        self,
        model: Mapping[str, Any],
        gradients: Mapping[str, Any],
        state: dict[str, Array],
        lr: Number | None = None,
    ) -> None:
        """As ``Optimizer.step``."""
        count = state["step"]
        count += 1.0
        super().step(model, gradients, state, lr)

    def _move(self, name: str, weight: Array, gradient: Array, state: dict[str, Array], lr: Number) -> None:
        if self.weight_decay and self.decoupled:
            weight *= 1 - lr * self.weight_decay
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        first, second = self.betas
        mean, square, count = state[f"mean.{name}"], state[f"square.{name}"], state["step"]
        mean *= first
        mean += (1 - first) * gradient
        square *= second
        square += (1 - second) * (gradient * gradient)
        root = sqrt(square / (1 - second**count)) + self.eps
        weight -= (lr / (1 - first**count)) * (mean / root)


class AdamW(Adam):
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019: the decay is apart from the gradient."""

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)


def clip_by_norm(gradients: Mapping[str, Array], max_norm: float) -> dict[str, Array]:
    """Gradients whose norm over all of them is at most ``max_norm``: Pascanu et al., On the difficulty of training RNNs, ICML 2013."""
    _check("max_norm", max_norm, 0, math.inf)
    squares = [(each.astype("float32") ** 2).sum() for each in gradients.values()]
    if not squares:
        return {}
    total = sqrt(sum(squares[1:], squares[0]))
    scale = minimum(max_norm / (total + 1e-6), 1.0)
    return {name: each * scale.astype(each.dtype) for name, each in gradients.items()}


def clip_by_value(gradients: Mapping[str, Array], most: float) -> dict[str, Array]:
    """Gradients of which no number is beyond ``most`` or its negative."""
    _check("most", most, 0, math.inf)
    return {name: each.clip(-most, most) for name, each in gradients.items()}


Schedule = Callable[[int], float]
"""The learning rate of a step, or of a round, by its number from 0."""


def constant(lr: float) -> Schedule:
    """Always the same."""
    return lambda _step: lr


def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """Multiplied by ``factor`` after every so many steps."""
    _check("every", every, 1, math.inf)
    return lambda step: lr * factor ** (step // every)


def exponential(lr: float, factor: float) -> Schedule:
    """Multiplied by ``factor`` after each step."""
    return lambda step: lr * factor**step


def cosine(lr: float, steps: int, least: float = 0.0) -> Schedule:
    """From ``lr`` to ``least`` in half a wave: Loshchilov and Hutter, SGDR, ICLR 2017."""
    _check("steps", steps, 1, math.inf)
    return lambda step: least + (lr - least) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2


def warmup(steps: int, then: Schedule) -> Schedule:
    """In so many steps from near 0 to what ``then`` begins with, which then goes on from its step 0."""
    _check("steps", steps, 1, math.inf)
    return lambda step: then(0) * (step + 1) / steps if step < steps else then(step - steps)


def _kept(model: Mapping[str, Any], kind: str) -> dict[str, Array]:
    return {
        f"{kind}.{name}": zeros_like(each)
        for name, each in model.items()
        if isinstance(each, Array) and each.dtype in {"float32", "float64"}
    }


def _check(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise TensorError(f"{name} is a number from {least} to {most}, not {value!r:.40}")


__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "Schedule",
    "clip_by_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "exponential",
    "step_decay",
    "warmup",
]
