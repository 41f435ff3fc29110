"""Steps that are kept for many calls: checked and bound once, with what lives how long, and whose memory can be written over.

A routine works on slots: its inputs first, then one a step, then the numbers that stand in its steps.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from propeller.tensors.operations import infer
from propeller.tensors.shapes import FLOAT, INT, ITEM_BYTES, Spec, TensorError, fits, size_bytes
from propeller.tensors.straight import Step, straighten

WEAK = {FLOAT, INT}
"""The dtypes of Python numbers."""

VIEWS = {"cut", "reshape", "transpose", "broadcast_to"}
"""Operations whose result may share its operand's memory."""

Kernel = Callable[..., Any]
Bind = Callable[[str, Sequence[Spec], Any, Spec], Kernel]
BindInto = Callable[[str, Sequence[Spec], Any, Spec, int], "Kernel | None"]


@dataclass(slots=True)
class Routine:
    """A list of steps, ready to be called."""

    inputs: list[Spec]
    donated: list[int]
    """Inputs that the caller gives up, so that their memory may be written over."""
    run: Callable[..., list[Any]]
    """Does the steps on the inputs' values, and gives the outputs'."""
    steps: int
    """How many they are."""
    specs: list[Spec]
    """Of the outputs."""
    shared: list[bool]
    """Whether an output may share memory with an input or another output."""
    escaping: list[int]
    """Inputs whose memory an output may share."""
    peak_bytes: int
    """What its results take at most at one time."""


def number(given: list[Any]) -> tuple[Any, Spec]:
    """The Python number in ``[number]``, and its spec.

    Raises:
        TensorError: It is none.
    """
    (value,) = given
    if type(value) is bool:
        return value, ("bool", ())
    if type(value) is int and fits(value, INT):
        return value, (INT, ())
    if type(value) is float:
        return value, (FLOAT, ())
    raise TensorError(f"{value!r:.40} is not a number")


def compile_routine(body: Any, bind: Bind, bind_into: BindInto) -> Routine:
    """Check steps that came from a program, and make them ready.

    Args:
        body: ``{"inputs": [specs], "donated": [input numbers], "steps": [[name, slot, operands, params]], "outputs": [slots]}``.
        bind: What does an operation.
        bind_into: What does it into the memory of the operand at a position; None where it cannot.

    Raises:
        TensorError: The steps are not in order, or one of them cannot be done.
    """
    specs = [_spec(each) for each in body["inputs"]]
    count, size = len(specs), len(specs) + len(body["steps"])
    numbers: list[Any] = []
    read: list[tuple[str, list[int], list[Spec], Any]] = []
    for at, (name, slot, operands, params) in enumerate(body["steps"]):
        if slot != count + at:
            raise TensorError("define: a step's slot is not the next one")
        places, given = [], []
        for each in operands:
            if type(each) is list:
                value, spec = number(each)
                numbers.append(value)
                places.append(size + len(numbers) - 1)
            else:
                places.append(_place(each, slot))
                spec = specs[each]
            given.append(spec)
        specs.append(infer(name, given, params))
        read.append((name, places, given, params))
    outputs = [_place(each, size) for each in body["outputs"]]
    donated = [_place(each, count) for each in body.get("donated", [])]
    roots = _roots(count, read, size + len(numbers))
    lives = _lives(read, roots, count, outputs)
    kept = {roots[place] for place in outputs}
    ending: dict[int, list[int]] = {}
    for place in range(size):
        if roots[place] not in kept and roots[place] in lives:
            ending.setdefault(lives[roots[place]], []).append(place)
    steps = []
    for at, (name, places, given, params) in enumerate(read):
        slot = count + at
        free = [
            position
            for position, place in enumerate(places)
            if place < size
            and given[position] == specs[slot]
            and roots[place] == place
            and place not in kept
            and (place >= count or place in donated)
            and lives[place] == at
        ]
        kernel = bind_into(name, given, params, specs[slot], free[0]) if free else None
        dead = [place for place in ending.get(at, []) if count <= place <= slot]
        steps.append(Step(kernel or bind(name, given, params, specs[slot]), places, slot, dead))
    # A view is taken for shared even where nothing else has its memory: it may repeat elements, or not be writable.
    times = Counter(roots[place] for place in outputs)
    shared = [roots[place] != place or place < count or times[place] > 1 for place in outputs]
    return Routine(
        specs[:count],
        donated,
        straighten(count, steps, {size + at: value for at, value in enumerate(numbers)}, outputs),
        len(steps),
        [specs[place] for place in outputs],
        shared,
        sorted({roots[place] for place in outputs if roots[place] < count}),
        _peak(steps, specs),
    )


def _roots(count: int, read: Sequence[tuple[str, list[int], list[Spec], Any]], total: int) -> list[int]:
    """For each slot, the one whose memory it may share: its own, or its source's."""
    roots = list(range(total))
    for at, (name, places, _, _) in enumerate(read):
        if name in VIEWS:
            roots[count + at] = roots[places[0]]
    return roots


def _lives(
    read: Sequence[tuple[str, list[int], list[Spec], Any]], roots: list[int], count: int, outputs: list[int]
) -> dict[int, int]:
    """For each root, the last step that uses it or a view of it."""
    lives: dict[int, int] = {}
    for at, (_, places, _, _) in enumerate(read):
        for place in (*places, count + at):
            lives[roots[place]] = at
    lives.update(dict.fromkeys((roots[place] for place in outputs), len(read)))
    return lives


def _place(given: Any, below: int) -> int:
    if type(given) is not int or not 0 <= given < below:
        raise TensorError(f"define: there is no slot {given!r:.40} below {below}")
    return given


def _spec(given: Any) -> Spec:
    dtype, sizes = given
    if dtype not in ITEM_BYTES and dtype not in WEAK:
        raise TensorError(f"there is no dtype {dtype!r:.40}")
    return dtype, infer("full", [], ["bool", sizes, 0])[1]


def _peak(steps: Sequence[Step], specs: Sequence[Spec]) -> int:
    now = most = 0
    for step in steps:
        now += size_bytes(specs[step.slot])
        most = max(most, now)
        now -= sum(size_bytes(specs[place]) for place in step.dead)
    return most
