"""The functions that make a script a program, and what they are given and give back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_functions: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Context:
    """Which task this is."""

    round_id: str = ""
    proplet_id: str = ""
    model_uri: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Update:
    """What training gives back.

    ``model`` has the base model's names and shapes: arrays, numbers or nested lists, after local training. ``num_samples`` (1 or
    more) is its weight in the mean. ``metrics`` are finite numbers by name, such as ``{"loss": 0.61}``.
    """

    model: Mapping[str, Any]
    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Evaluation:
    """What an evaluation gives back: over how many samples, and finite numbers by name."""

    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


def train(function: Function) -> Function:
    """Register ``function(model, data, hyperparams, ctx) -> Update`` as what this program trains with.

    ``model`` maps names to arrays, ``data`` is a ``Data``, ``hyperparams`` is what the experiment set, ``ctx`` a ``Context``. What it prints
    appears in the proplet's log.
    """
    return _register("train", function)


def evaluate(function: Function) -> Function:
    """Register ``function(model, data, hyperparams, ctx) -> Evaluation`` for tasks that only evaluate (``FL_MODE=evaluate``)."""
    return _register("evaluate", function)


def registered(mode: str) -> Callable[..., Any]:
    """The function for a mode.

    Raises:
        LookupError: The program has none.
    """
    if mode not in _functions:
        raise LookupError(
            f"this program has no function for {mode!r}: mark one with @{mode} of propeller.program"
        )
    return _functions[mode]


def forget() -> None:
    """Register anew from here on: for a test that loads several programs."""
    _functions.clear()


def _register(mode: str, function: Function) -> Function:
    if mode in _functions and _functions[mode] is not function:
        raise ValueError(
            f"two functions are marked with @{mode}: {_functions[mode].__name__} and {function.__name__}"
        )
    _functions[mode] = function
    return function
