"""The functions that make a script a program, what they get and what they return."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from propeller.functions import missing_function

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Update:
    """What training returns.

    Attributes:
        model: the base model's names and shapes: arrays, numbers or nested lists, after local training.
        num_samples: its weight in the mean, 1 or more.
        metrics: finite numbers by name, such as ``{"loss": 0.61}``.
        steps: how many steps of the optimizer were done, 1 or more, for strategies that need it (SCAFFOLD, FedNova).
        lr: the learning rate of these steps, for SCAFFOLD.
        kind: what ``model`` is: ``weights``, or their ``delta``, the difference to the base model.
    """

    model: Mapping[str, Any]
    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    lr: float | None = None
    kind: str = "weights"


@dataclass
class Evaluation:
    """What an evaluation returns: over how many samples, and finite numbers by name."""

    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


class FunctionRegistry:
    """The functions that a script has marked, by mode: ``train``, ``evaluate`` and ``aggregate``."""

    def __init__(self) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}

    def add(self, mode: str, function: Function) -> Function:
        """Register the function of a mode; returns it.

        Raises:
            TypeError: It does not take what it will be given.
            ValueError: The mode has another one.
        """
        _check_arguments(mode, function)
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
            raise LookupError(missing_function(mode))
        return self._functions[mode]

    def check_any(self) -> None:
        """See that there is a function to call.

        Raises:
            LookupError: The program has none.
        """
        if not self._functions.keys() & {"train", "aggregate"}:
            raise LookupError("this program has no function: mark one with @train of propeller.program")


_VARARGS = 0x04
_TRAINING_ARGUMENTS = ("model", "data", "hyperparams", "ctx")
_ARGUMENTS = {
    "train": _TRAINING_ARGUMENTS,
    "evaluate": _TRAINING_ARGUMENTS,
    "aggregate": ("base", "updates", "state", "params", "ctx"),
    "initial_model": ("hyperparams",),
}
"""What the function of each mode is called with, by position."""


def _check_arguments(mode: str, function: Callable[..., Any]) -> None:
    """See that the function takes what it will be given. By its code: ``inspect`` would make programs start more slowly.

    Raises:
        TypeError: it does not.
    """
    code = getattr(function, "__code__", None)
    if code is None:  # an object with ``__call__``: calling it tells
        return
    names = code.co_varnames[: code.co_argcount][int(hasattr(function, "__self__")) :]
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    given, most = _ARGUMENTS[mode], len(names)
    least = most - len(getattr(function, "__defaults__", None) or ())
    missing = [name for name in keywords if name not in (getattr(function, "__kwdefaults__", None) or {})]
    takes_all = bool(code.co_flags & _VARARGS) or most >= len(given)
    if least > len(given) or not takes_all or missing:
        taken = ", ".join([*names, *(["*", *missing] if missing else [])])
        raise TypeError(f"{function.__name__} takes ({taken}), and is given ({', '.join(given)})")


_RETURNED_BY = "returned by "
"""Begins a note of an error about a result, whose traceback does not go through the function."""


@contextmanager
def result_of(function: Callable[..., Any]) -> Iterator[None]:
    """For the length of a block that looks at what a function returned: errors know where that function is."""
    try:
        yield
    except Exception as error:
        while hasattr(function, "__wrapped__"):  # a decorator's, in another file
            function = function.__wrapped__
        code = getattr(function, "__code__", None)
        if code is not None:
            error.add_note(f"{_RETURNED_BY}{Path(code.co_filename).name}:{code.co_firstlineno}")
        raise


def place_of_result(error: BaseException) -> str | None:
    """Where the function is whose result an error is about, as ``train.py:12``; ``None`` if it is about something else."""
    notes: list[str] = getattr(error, "__notes__", [])
    return next((note.removeprefix(_RETURNED_BY) for note in notes if note.startswith(_RETURNED_BY)), None)


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


def aggregate(function: Function) -> Function:
    """Register ``function(base, updates, state, params, ctx) -> Aggregate`` as the strategy that this program is.

    ``base`` maps names to arrays, ``updates`` is a sequence of ``DeviceUpdate``, ``state`` is what the last round's aggregation
    returned as its state (empty in the first), ``params`` are the strategy's parameters as the experiment set them, ``ctx`` is
    a ``Context``. It runs in the aggregator's sandbox. Updates are opened as they are used: go through them one at a time.
    """
    return _registry.get().add("aggregate", function)


def initial_model(function: Function) -> Function:
    """Register ``function(hyperparams) -> arrays by name`` as what makes the model that an experiment begins with.

    It is not called on devices: ``model.file = "train.py"`` of an experiment file runs it as plain Python on the machine that starts the
    experiment, once. ``hyperparams`` are the experiment's.
    """
    return _registry.get().add("initial_model", function)


def registered(mode: str) -> Callable[..., Any]:
    """The function that this program has for a mode.

    Raises:
        LookupError: The program has none.
    """
    return _registry.get().function(mode)


def check_registered() -> None:
    """See that this program has a function for a task.

    Raises:
        LookupError: It has none.
    """
    _registry.get().check_any()


def reset() -> None:
    """Start an empty registry: for a test that loads several programs."""
    _registry.set(FunctionRegistry())
