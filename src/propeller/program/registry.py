"""The functions that make a script a program, what they get and what they return."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Context:
    """Which task this is."""

    round_id: str = ""
    proplet_id: str = ""
    model_uri: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Update:
    """What training returns.

    ``model`` has the base model's names and shapes: arrays, numbers or nested lists, after local training. ``num_samples`` (1 or
    more) is its weight in the mean. ``metrics`` are finite numbers by name, such as ``{"loss": 0.61}``.
    """

    model: Mapping[str, Any]
    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Evaluation:
    """What an evaluation returns: over how many samples, and finite numbers by name."""

    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


class FunctionRegistry:
    """The functions that a script has marked, by mode: ``train`` and ``evaluate``."""

    def __init__(self) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}

    def add(self, mode: str, function: Function) -> Function:
        """Register the function of a mode; returns it.

        Raises:
            ValueError: The mode has another one.
        """
        known = self._functions.setdefault(mode, function)
        if known is not function:
            raise ValueError(
                f"two functions are marked with @{mode}: {known.__name__} and {function.__name__}"
            )
        return function

    def function(self, mode: str) -> Callable[..., Any]:
        """The function of a mode.

        Raises:
            LookupError: The program has none.
        """
        if mode not in self._functions:
            raise LookupError(
                f"this program has no function for {mode!r}: mark one with @{mode} of propeller.program"
            )
        return self._functions[mode]


_registry: ContextVar[FunctionRegistry] = ContextVar("registry", default=FunctionRegistry())  # noqa: B039 - one for the whole process


def train(function: Function) -> Function:
    """Register ``function(model, data, hyperparams, ctx) -> Update`` as what this program trains with.

    ``model`` maps names to arrays, ``data`` is a ``Data``, ``hyperparams`` is what the experiment set, ``ctx`` a ``Context``. What it prints
    appears in the proplet's log.
    """
    return _registry.get().add("train", function)


def evaluate(function: Function) -> Function:
    """Register ``function(model, data, hyperparams, ctx) -> Evaluation`` for tasks that only evaluate (``FL_MODE=evaluate``)."""
    return _registry.get().add("evaluate", function)


def registered(mode: str) -> Callable[..., Any]:
    """The function that this program has for a mode.

    Raises:
        LookupError: The program has none.
    """
    return _registry.get().function(mode)


def reset() -> None:
    """Start an empty registry: for a test that loads several programs."""
    _registry.set(FunctionRegistry())
