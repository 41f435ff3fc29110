"""Networks: layers whose parameters are the named tensors of a model, with PyTorch's names and layouts.

A network has no numbers of its own. It says which tensors it takes (``init`` makes them), and computes with those that it is given:

    class Net(nn.Module):
        def __init__(self):
            self.conv1 = nn.Conv2d(1, 6, 5)
            self.fc1 = nn.Linear(6 * 12 * 12, 10)

        def forward(self, x):
            x = pt.max_pool2d(pt.relu(self.conv1(x)), 2)
            return self.fc1(x.reshape(len(x), -1))

    net = Net()
    model = net.init(seed=1)      # {"conv1.weight": …, "conv1.bias": …, "fc1.weight": …, "fc1.bias": …}
    logits = net.apply(model, x)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from propeller.tensors.array import Array
from propeller.tensors.randomness import Random, random
from propeller.tensors.shapes import TensorError

Initialiser = Callable[[Random, tuple[int, ...]], Array]
"""Makes the first values of a parameter of a shape."""


@dataclass(frozen=True)
class Parameter:
    """A tensor that a module takes from the model, under its attribute's name.

    Attributes:
        shape: of the tensor.
        init: makes its first values.
        trained: whether it has a gradient; running statistics have none.
    """

    shape: tuple[int, ...]
    init: Initialiser
    trained: bool = True


@dataclass
class _Use:
    """One use of a network: the model that it computes with, and what changes on the way."""

    model: Mapping[str, Any]
    prefixes: Mapping[int, str]
    key: Array | None = None
    draws: int = 0
    failed: TensorError | None = None
    changed: dict[str, Array] = field(default_factory=dict)


_use: ContextVar[_Use | None] = ContextVar("use", default=None)


class Module:
    """A layer, or a network of layers: those are its attributes, as its parameters are. A subclass has ``forward``."""

    _prefixes: Mapping[int, str] | None = None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The output for some inputs, while the network is applied to a model."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """As ``forward``, within the ``forward`` of a network.

        Raises:
            TensorError: No network is applied to a model.
        """
        use = _use.get()
        if use is None:
            raise TensorError(
                f"{type(self).__name__} has no tensors of its own: write net.apply(model, x) where net(x) is written in PyTorch"
            )
        try:
            return self.forward(*inputs, **options)
        except TensorError as error:
            # The line alone does not say which layer it is, in a Sequential or a loop. The innermost one names itself.
            if use.failed is not error and (path := use.prefixes.get(id(self))):
                use.failed = error
                error.args = (f"{path.removesuffix('.')} ({type(self).__name__}): {error}",)
            raise

    def __getitem__(self, name: str) -> Any:
        """The array of a parameter, within ``forward``.

        Raises:
            TensorError: No network that has this module is applied, or the model lacks the tensor.
        """
        use = self._current()
        full = use.prefixes[id(self)] + name
        if full in use.changed:
            return use.changed[full]
        if full not in use.model:
            raise TensorError(
                f"the model has no tensor {full!r}, which the network takes; it has {', '.join(map(repr, use.model)) or 'none'}"
            )
        array, declared = use.model[full], vars(self).get(name)
        shape = getattr(array, "shape", None)
        if isinstance(declared, Parameter) and shape is not None and tuple(shape) != declared.shape:
            raise TensorError(
                f"the model's {full!r} has the shape {list(shape)}, the network takes {list(declared.shape)}: "
                "the model is of another network"
            )
        return array

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules in this one, by their names."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def parameters(self) -> dict[str, Parameter]:
        """What this module and those in it take from a model, by full name, in the order of their definition."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, Parameter)}
        for name, child in self.children():
            found.update({f"{name}.{inner}": value for inner, value in child.parameters().items()})
        return found

    def init(self, seed: int | str = 0) -> dict[str, Array]:
        """A model to begin with: every parameter, drawn anew as PyTorch's layers draw theirs by default."""
        source = random(seed)
        return {name: each.init(source, each.shape) for name, each in self.parameters().items()}

    def trained(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Those tensors of a model that have gradients: not the running statistics, nor what the network does not take."""
        return {
            name: model[name] for name, each in self.parameters().items() if each.trained and name in model
        }

    def apply(self, model: Mapping[str, Any], *inputs: Any) -> Any:
        """The network's output with the tensors of a model, for use: nothing is dropped out, and batch norms take the running statistics.

        Raises:
            TensorError: The model lacks a tensor, or shapes do not fit.
        """
        with self._using(_Use(model, self._paths())):
            return self.forward(*inputs)

    def train(self, model: Mapping[str, Any], *inputs: Any, key: Array) -> tuple[Any, dict[str, Array]]:
        """The network's output as it is while it learns, and the tensors that change without a gradient (running statistics).

        Args:
            model: its tensors.
            inputs: of ``forward``.
            key: for what is drawn at random: ``pt.random(seed).key()``, another one for each step.

        Raises:
            TensorError: As for ``apply``.
        """
        use = _Use(model, self._paths(), key)
        with self._using(use):
            output = self.forward(*inputs)
        return output, use.changed

    # For layers -----------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Within ``forward``: whether the network learns."""
        return self._current().key is not None

    def draw_key(self) -> tuple[Array, int]:
        """Within ``forward``, while the network learns: the step's key, and a number that no other draw of the step has."""
        use = self._current()
        if use.key is None:
            raise TensorError("a network that is applied draws nothing: train it, with a key")
        use.draws += 1
        return use.key, use.draws

    def change(self, name: str, value: Array) -> None:
        """Within ``forward``, while the network learns: have a parameter become another array after the step."""
        use = self._current()
        use.changed[use.prefixes[id(self)] + name] = value

    def _current(self) -> _Use:
        use = _use.get()
        if use is None or id(self) not in use.prefixes:
            raise TensorError(
                f"this {type(self).__name__} is not part of a network that is applied to a model: hold it as an attribute of the network, and "
                "a list of layers as nn.ModuleList([…])"
            )
        return use

    def _paths(self) -> Mapping[int, str]:
        """Where the parameters of each module begin, by the module's identity."""
        if self._prefixes is None:
            self._prefixes = dict(_walk(self, ""))
        return self._prefixes

    @contextmanager
    def _using(self, use: _Use) -> Iterator[None]:
        token = _use.set(use)
        try:
            yield
        finally:
            _use.reset(token)


def _walk(module: Module, prefix: str) -> Iterator[tuple[int, str]]:
    yield id(module), prefix
    for name, child in module.children():
        yield from _walk(child, f"{prefix}{name}.")


class Sequential(Module):
    """Modules and functions of one array, one after another.

    Without names they are numbered, as in PyTorch: ``Sequential(Linear(784, 32), pt.relu, Linear(32, 10))`` takes ``0.weight``, ``0.bias``,
    ``2.weight`` and ``2.bias``; ``Sequential(fc1=Linear(784, 32), act=pt.relu, fc2=Linear(32, 10))`` takes ``fc1.weight`` and so on.
    """

    def __init__(self, *steps: Any, **named: Any) -> None:
        self._steps: dict[str, Any] = {
            **{str(n): each for n, each in enumerate(steps)},
            **named,
        }
        wrong = [name for name, each in self._steps.items() if not callable(each)]
        if wrong:
            raise TypeError(f"Sequential: {wrong[0]!r} is neither a module nor a function of an array")

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules among the steps."""
        return ((name, each) for name, each in self._steps.items() if isinstance(each, Module))

    def forward(self, x: Any) -> Any:
        """Each step on what the one before it gave."""
        for step in self._steps.values():
            x = step(x)
        return x


class ModuleList(Module):
    """Modules by number, for a ``forward`` that goes through them: ``0.weight``, ``1.weight``, …"""

    def __init__(self, modules: Sequence[Module]) -> None:
        self._modules = list(modules)

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules."""
        return ((str(number), each) for number, each in enumerate(self._modules))

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
