"""What a strategy adds to the gradients of local training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from propeller.program.library_arrays import like
from propeller.tensors.array import Array
from propeller.tensors.jit import ArrayContainer
from propeller.tensors.shapes import TensorError


@dataclass(frozen=True, eq=False)
class Correction(ArrayContainer):
    """``correct(gradients, weights)`` gives the gradients of what the strategy has a device minimise: its own loss ``F`` plus a penalty.

    For weights ``w`` the penalty is ``pull/2 |w - anchor|² + <shift, w>``, so that each gradient has ``pull (w - anchor) + shift``
    added: FedProx (Li et al., 2020, eq. 2) and the personal training of Ditto (Li et al., 2021, algorithm 1) pull towards the
    round's model, SCAFFOLD (Karimireddy et al., 2020, eq. 3) shifts by ``c - c_i``. Other strategies add nothing.

    Attributes:
        pull: how strongly it is pulled towards the anchor.
        anchor: by tensor, where to; empty where nothing is pulled.
        shift: by tensor; one that is missing is not shifted.
        exempt: tensors that are left alone.
        calls: has an entry once it was called, or its penalty was; shared by those of one task.
    """

    pull: Any = 0.0
    anchor: Mapping[str, Array] = field(default_factory=dict)
    shift: Mapping[str, Array] = field(default_factory=dict)
    exempt: frozenset[str] = frozenset()
    calls: set[str] = field(default_factory=set)

    def __call__(self, gradients: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
        """The corrected gradients, in the order in which they came.

        Args:
            gradients: by tensor, of the device's own loss.
            weights: by tensor, where they were taken.

        Raises:
            TensorError: A tensor is none of the model's, or has no weight.
        """
        self.calls.add("correct")
        return {
            name: self._corrected(name, gradient, weights.get(name)) for name, gradient in gradients.items()
        }

    def penalty(self, weights: Mapping[str, Any]) -> Any:
        """The penalty itself, for a loss that is differentiated with it: ``loss + ctx.correct.penalty(model)``.

        Returns:
            One number: an array, or 0.0 where there is no penalty.

        Raises:
            TensorError: A tensor is none of the model's.
        """
        self.calls.add("penalty")
        total: Any = 0.0
        for name, weight in weights.items():
            if self._is_pulled(name):
                total = total + self.pull / 2 * ((weight - like(self.anchor[name], weight)) ** 2).sum()
            if name in self.shift:
                total = total + (like(self.shift[name], weight) * weight).sum()
        return total

    def _corrected(self, name: str, gradient: Any, weight: Any) -> Any:
        if self._is_pulled(name):
            if weight is None:
                raise TensorError(f"correct: the weights lack {name!r}, which has a gradient")
            gradient = gradient + self.pull * (weight - like(self.anchor[name], weight))
        return gradient + like(self.shift[name], gradient) if name in self.shift else gradient

    def _is_pulled(self, name: str) -> bool:
        if not self.anchor or name in self.exempt:
            return False
        if name not in self.anchor:
            raise TensorError(
                f"correct: {name!r} is no tensor of the model: call it with gradients and weights by the model's names; "
                f"they are {', '.join(self.anchor)}"
            )
        return True

    def array_parts(self) -> tuple[Any, Any]:
        """What a traced function is known by, and what changes from call to call."""
        pull = {"pull": float(self.pull)} if self.anchor else {}
        return self.exempt, {**pull, "anchor": dict(self.anchor), "shift": dict(self.shift)}

    def with_array_parts(self, parts: Any) -> "Correction":
        """The same correction with these arrays."""
        return Correction(parts.get("pull", 0.0), parts["anchor"], parts["shift"], self.exempt, self.calls)
