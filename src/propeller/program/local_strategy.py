"""The device's part of a strategy: what a task does with the values that ``FL_STRATEGY`` has for devices (docs/programs.md).

``mu`` pulls the training towards the round's model (FedProx). ``control`` keeps a control variate (SCAFFOLD). ``lambda`` has a second
model trained, which stays on the device (Ditto). ``personal`` names tensors that stay on the device, ``trained`` those that are not frozen,
``free`` those that have any length (bagging).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from propeller.errors import InvalidError
from propeller.program.context import Context
from propeller.program.correction import Correction
from propeller.program.device_state import DeviceState
from propeller.program.library_arrays import given
from propeller.tensors import session
from propeller.tensors.array import Array, open_tensor
from propeller.tensors.functions import zeros
from propeller.tensors.shapes import Spec, is_floating

CONTROL = "control"
"""The kind of the tensors that SCAFFOLD's updates have beside the model's, ``@control/NAME``, and of its server state's, ``control/NAME``."""

_DITTO, _PERSONAL = "ditto", "personal"
"""Kinds of the state that is kept here."""

_TRAINED, _FREE = "trained", "free"

_SERVER_STATE = "strategy"
"""The source of the strategy's tensors for devices, ``in/strategy.safetensors``."""


class LocalStrategy:
    """What one task does for its strategy, before, beside and after the program's function."""

    def __init__(self, context: Context, specs: Mapping[str, Spec], root: Path) -> None:
        """Read what the strategy asks for.

        Args:
            context: of the task.
            specs: of the base model's tensors.
            root: of the task's files.

        Raises:
            InvalidError: a value of the strategy is not what it should be; the text names it.
        """
        values = context.strategy
        self._name, self._specs = str(values.get("name", "strategy")), specs
        self._state = context.state
        self._mu, self._lambda = (_weight(values, name) for name in ("mu", "lambda"))
        self._has_control = bool(values.get(CONTROL))
        self._root = root
        self._personal = _matching(_PERSONAL, values.get(_PERSONAL) or [], specs)
        trained = _matching(_TRAINED, values.get(_TRAINED) or [], specs) or list(specs)
        self.frozen = frozenset(specs) - frozenset(trained) - frozenset(self._personal)
        free = values.get(_FREE)
        self.free = frozenset(_matching(_FREE, free, specs) if free else ())
        for name in self.free:
            dtype, shape = specs[name]
            if dtype != "uint8" or len(shape) != 1:
                raise InvalidError(
                    f"strategy.free: {name!r} is {dtype} of shape {list(shape)} in the model; what has any length is a vector of bytes "
                    "(uint8): give the first model as a .npz or .safetensors file, or as a NumPy array"
                )
        if specs and not self.shared:
            raise InvalidError(f"strategy: personal and trained leave nothing to share of {', '.join(specs)}")
        self._shift: dict[str, Array] = {}
        self._calls: set[str] = set()

    @property
    def trains_twice(self) -> bool:
        """Whether a second model is trained, which stays on the device."""
        return self._lambda > 0

    @property
    def shared(self) -> dict[str, Spec]:
        """The tensors of the model that an update has."""
        return {
            name: spec
            for name, spec in self._specs.items()
            if name not in self._personal and name not in self.frozen
        }

    def model(self) -> dict[str, Array]:
        """The model to train or evaluate: the base model, with the device's own tensors where it has some."""
        own = self._kept.library_arrays(_PERSONAL) if self._personal else {}
        return {
            name: own[name].copy() if name in own else open_tensor("model", name, spec)
            for name, spec in self._specs.items()
        }

    def second_model(self) -> dict[str, Array]:
        """The device's own model, which begins as the base model."""
        own = self._kept.library_arrays(_DITTO)
        return {
            name: own[name].copy() if name in own else open_tensor("model", name, spec)
            for name, spec in self._specs.items()
        }

    def correction(self) -> Correction:
        """What is added to the gradients of the training whose model is shared."""
        if self._has_control:
            self._shift = self._control_shift()
        anchor, shift = self._anchor() if self._mu else {}, _each_given(self._shift)
        return Correction(self._mu, anchor, shift, self.frozen.union(self._personal), self._calls)

    def second_context(self, context: Context) -> Context:
        """The context in which the device's own model is trained."""
        return replace(
            context, correct=Correction(self._lambda, self._anchor(), calls=self._calls), personal=True
        )

    @property
    def asks_for_correction(self) -> bool:
        """Whether something is to be added to gradients."""
        return bool(self._mu or self._lambda or self._has_control)

    @property
    def is_ignored(self) -> bool:
        """Whether something was to be added to gradients, and the program, which has trained, did not ask for it."""
        return not self._calls and self.asks_for_correction

    def keep_second_model(self, model: Mapping[str, Array]) -> None:
        """Keep the device's own model for the next round."""
        kept = {
            name: tensor.astype(self._specs[name][0]) if name in self._specs else tensor
            for name, tensor in model.items()
        }
        self._kept.keep_library_arrays(_DITTO, kept)

    def keep_personal_tensors(self, model: Mapping[str, Array], kind: str) -> None:
        """Keep the tensors of a trained model that stay here; ``kind`` says what ``model`` is, weights or a delta."""
        if not self._personal:
            return
        own = self._kept.library_arrays(_PERSONAL)
        kept = {}
        for name in self._personal:
            before = own.get(name)
            if before is None:
                before = open_tensor("model", name, self._specs[name])
            kept[name] = model[name] if kind == "weights" else _computable(before) + _computable(model[name])
            kept[name] = kept[name].astype(self._specs[name][0])
        self._kept.keep_library_arrays(_PERSONAL, kept)

    def in_kind(self, model: dict[str, Array], kind: str, wanted: str) -> tuple[dict[str, Array], str]:
        """A trained model as weights or as the difference to the base model, whichever is wanted; with the kind that it then has."""
        if kind == wanted or not self._specs:
            return model, kind
        turned = {}
        for name, spec in self.shared.items():
            if name in self.free:
                turned[name] = model[name]
                continue
            base = open_tensor("model", name, spec)
            if wanted == "delta":
                turned[name] = _computable(model[name]) - _computable(base)
            else:
                turned[name] = (_computable(base) + _computable(model[name])).astype(spec[0])
        return turned, wanted

    def control_tensors(
        self, model: Mapping[str, Array], kind: str, steps: int | None, lr: float | None
    ) -> dict[str, Array]:
        """Keep the new control variate of this device, and return what the update has of it.

        Karimireddy et al. (2020), algorithm 1, line 12, option II: ``c_i+ = c_i - c + (x - y_i) / (K lr)`` for the base model x and
        the trained one y_i after K steps; the server gets ``c_i+ - c_i``.

        Raises:
            InvalidError: the program does not say how many steps it did, or with which learning rate.
        """
        if not self._has_control:
            return {}
        if steps is None or lr is None:
            missing = " and ".join(name for name, value in (("steps", steps), ("lr", lr)) if value is None)
            raise InvalidError(
                f"{missing}: the strategy {self._name} needs how many steps were done and with which learning rate: "
                "return Update(…, steps=…, lr=…)"
            )
        base, old, new, sent = self._base(), self._kept.library_arrays(CONTROL), {}, {}
        for name in self._controlled:
            trained = _computable(model[name])
            change = base[name] - trained if kind == "weights" else -trained
            control = change / (steps * lr)
            if name in self._shift:
                control = control - self._shift[name]
            new[name] = control
            sent[f"@{CONTROL}/{name}"] = control - old[name] if name in old else control
        self._kept.keep_library_arrays(CONTROL, new)
        return sent

    @property
    def _controlled(self) -> list[str]:
        """The tensors that have a control variate: those with gradients that are shared."""
        return [name for name, (dtype, _) in self.shared.items() if is_floating(dtype)]

    def _control_shift(self) -> dict[str, Array]:
        """``c - c_i``; what is not there yet is zero."""
        own, server = self._kept.library_arrays(CONTROL), self._server_control()
        shift = {}
        for name in self._controlled:
            if name in server or name in own:
                dtype, shape = self._specs[name]
                one = server[name] if name in server else zeros(shape, dtype)
                shift[name] = (one - own[name] if name in own else one).astype(dtype)
        return shift

    def _server_control(self) -> dict[str, Array]:
        if not (self._root / "in" / f"{_SERVER_STATE}.safetensors").exists():
            return {}
        specs, prefix = session.current().main.describe(_SERVER_STATE), f"{CONTROL}/"
        return {
            name.removeprefix(prefix): open_tensor(_SERVER_STATE, name, spec)
            for name, spec in specs.items()
            if name.startswith(prefix)
        }

    def _base(self) -> dict[str, Array]:
        """The shared tensors of the base model that can have gradients, as arrays that the program does not have."""
        return {name: open_tensor("model", name, self._specs[name]) for name in self._controlled}

    def _anchor(self) -> dict[str, Array]:
        """The same, as the program computes with them."""
        return _each_given(self._base())

    @property
    def _kept(self) -> DeviceState:
        if not isinstance(self._state, DeviceState):
            raise InvalidError(
                "state: the context's state is no DeviceState, in which strategies keep tensors"
            )
        return self._state


def _each_given(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name: given(tensor) for name, tensor in tensors.items()}


def _computable(tensor: Array) -> Array:
    """The same numbers in a dtype that has negative ones, too, and to compute with."""
    wider = {"bool": "int64", "uint8": "int64", "float16": "float32", "bfloat16": "float32"}.get(tensor.dtype)
    return tensor if wider is None else tensor.astype(wider)


def _weight(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidError(f"strategy.{name} is {value!r}; it is a number of 0 or more")
    return float(value)


def _matching(field: str, patterns: Any, specs: Mapping[str, Spec]) -> list[str]:
    """The tensors that the patterns of a field of the strategy name.

    Raises:
        InvalidError: a pattern matches none.
    """
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise InvalidError(f'strategy.{field} is a list of patterns of tensor names, such as ["head.*"]')
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in specs):
            raise InvalidError(
                f"strategy.{field}: {pattern!r} matches no tensor of the model; there are {', '.join(specs)}"
            )
    return [name for name in specs if any(fnmatchcase(name, pattern) for pattern in patterns)]
