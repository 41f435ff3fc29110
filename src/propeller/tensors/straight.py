"""Steps as one straight Python function: what a loop over them costs, small arrays would notice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Step:
    """One operation on slots: the function that does it, the slots of its operands, and the slot of its result."""

    kernel: Callable[..., Any]
    places: list[int]
    slot: int
    dead: list[int]
    """Slots that are not needed after it."""


def straighten(
    inputs: int, steps: Sequence[Step], numbers: dict[int, Any], outputs: Sequence[int]
) -> Callable[..., list[Any]]:
    """A function of ``inputs`` values that does the steps and returns the slots ``outputs``.

    Its text is made of slot numbers only; nothing that a program wrote is in it.
    """
    names: dict[str, Any] = {f"s{slot}": value for slot, value in numbers.items()}
    lines = [f"def routine({', '.join(f's{slot}' for slot in range(inputs))}):"]
    for at, step in enumerate(steps):
        names[f"k{at}"] = step.kernel
        lines.append(f" s{step.slot} = k{at}({', '.join(f's{place}' for place in step.places)})")
        if step.dead:
            lines.append(f" {' = '.join(f's{slot}' for slot in step.dead)} = None")
    lines.append(f" return [{', '.join(f's{slot}' for slot in outputs)}]")
    exec("\n".join(lines), names)  # noqa: S102 - of our own text, see above
    made: Callable[..., list[Any]] = names["routine"]
    return made
