"""Steps that are kept for many calls: checked and bound once, with what lives how long, and whose memory can be written over.

A routine works on slots: its inputs first, then one a step, then the numbers that stand in its steps.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from propeller.tensors.operations import OPERATIONS, Kernel, infer
from propeller.tensors.shapes import FLOAT, INT, ITEM_BYTES, WEAK, Spec, TensorError, fits, size_bytes

_FOLDED_BYTES, _ALL_FOLDED_BYTES = 4096, 1 << 16
"""How large a result is that is computed once and kept, and all of a routine: more would be memory that no quota counts."""

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
    sizes: list[int]
    """Of the outputs, in bytes."""
    shared: list[bool]
    """Whether an output may share memory with an input or another output."""
    escaping: list[int]
    """Inputs whose memory an output may share."""
    peak_bytes: int
    """What its results take at most at one time."""


@dataclass(slots=True)
class _Step:
    """One operation on slots, as a program sent it."""

    name: str
    slots: list[int]
    """Of its operands."""
    specs: list[Spec]
    """Of its operands."""
    params: Any
    kind: Any
    """What it has in common with steps that the same kernel does."""


@dataclass(slots=True)
class BoundStep:
    """One operation on slots: its kernel, the slots of its operands, and the slot of its result."""

    kernel: Kernel
    slots: list[int]
    result: int
    dead: list[int]
    """Slots that are not needed after it."""


def parse_number(operand: list[Any]) -> tuple[Any, Spec]:
    """The Python number in ``[number]``, and its spec.

    Raises:
        TensorError: It is none.
    """
    (value,) = operand
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
        bind: Gives the kernel of an operation.
        bind_into: Gives one that writes over the operand at a position; None where there is none.

    Raises:
        TensorError: The steps are not in order, or one of them cannot be done.
    """
    specs = [_parse_spec(each) for each in body["inputs"]]
    inputs, size = len(specs), len(specs) + len(body["steps"])
    steps, numbers = _parse_steps(body["steps"], specs)
    outputs = [_parse_slot(each, size) for each in body["outputs"]]
    donated = [_parse_slot(each, inputs) for each in body.get("donated", [])]
    constants = {size + at: value for at, value in enumerate(numbers)}
    roots = _memory_roots(steps, inputs, size + len(numbers))
    last_uses = _last_uses(steps, roots, inputs, outputs)
    kept = {roots[slot] for slot in outputs}
    folded = _fold(steps, specs, inputs, constants, kept, bind)
    ending: dict[int, list[int]] = {}
    for slot in range(size):
        if roots[slot] not in kept and roots[slot] in last_uses and slot not in constants:
            ending.setdefault(last_uses[roots[slot]], []).append(slot)
    bound = []
    kernels: dict[Any, Kernel] = {}
    for at, step in enumerate(steps):
        result = inputs + at
        if result in folded:
            continue
        out = specs[result]
        # Operands of the result's spec, whose memory nobody needs after this step.
        writable = [
            position
            for position, slot in enumerate(step.slots)
            if slot not in constants
            and step.specs[position] == out
            and roots[slot] == slot
            and slot not in kept
            and (slot >= inputs or slot in donated)
            and last_uses[slot] == at
        ]
        kind = step.kind, *writable[:1]
        kernel = kernels.get(kind)
        if kernel is None:
            if writable:
                kernel = bind_into(step.name, step.specs, step.params, out, writable[0])
            kernel = kernels[kind] = kernel or bind(step.name, step.specs, step.params, out)
        dead = [slot for slot in ending.get(at, []) if inputs <= slot <= result]
        bound.append(BoundStep(kernel, step.slots, result, dead))
    # A view counts as shared even where nothing else has its memory: it may repeat elements, or not be writable.
    times = Counter(roots[slot] for slot in outputs)
    return Routine(
        inputs=specs[:inputs],
        donated=donated,
        run=compile_steps(inputs, bound, constants, outputs),
        steps=len(steps),
        specs=[specs[slot] for slot in outputs],
        sizes=[size_bytes(specs[slot]) for slot in outputs],
        shared=[roots[slot] != slot or slot < inputs or times[slot] > 1 for slot in outputs],
        escaping=sorted({roots[slot] for slot in outputs if roots[slot] < inputs}),
        peak_bytes=_peak_bytes(bound, specs),
    )


def _fold(
    steps: Sequence[_Step],
    specs: Sequence[Spec],
    inputs: int,
    constants: dict[int, Any],
    kept: set[int],
    bind: Bind,
) -> set[int]:
    """Do the steps that give the same at each call, as those of a mean's gradient, and add what they give to the constants.

    Returns:
        The slots of these.
    """
    folded: set[int] = set()
    room = _ALL_FOLDED_BYTES
    for at, step in enumerate(steps):
        result, size = inputs + at, size_bytes(specs[inputs + at])
        if (
            result in kept
            or size > min(room, _FOLDED_BYTES)
            or not all(each in constants for each in step.slots)
        ):
            continue
        kernel = bind(step.name, step.specs, step.params, specs[result])
        constants[result] = kernel(*(constants[each] for each in step.slots))
        folded.add(result)
        room -= size
    return folded


def compile_steps(
    inputs: int, steps: Sequence[BoundStep], constants: dict[int, Any], outputs: Sequence[int]
) -> Callable[..., list[Any]]:
    """One straight Python function of ``inputs`` values that does the steps and returns the slots ``outputs``.

    Small arrays would notice what a loop over the steps costs. The function's text is made of slot numbers only; nothing that a
    program wrote is in it.
    """
    names: dict[str, Any] = {f"s{slot}": value for slot, value in constants.items()}
    lines = [f"def routine({', '.join(f's{slot}' for slot in range(inputs))}):"]
    for at, step in enumerate(steps):
        names[f"k{at}"] = step.kernel
        lines.append(f" s{step.result} = k{at}({', '.join(f's{slot}' for slot in step.slots)})")
        if step.dead:
            lines.append(f" {' = '.join(f's{slot}' for slot in step.dead)} = None")
    lines.append(f" return [{', '.join(f's{slot}' for slot in outputs)}]")
    exec("\n".join(lines), names)  # noqa: S102 - of our own text, see above
    routine: Callable[..., list[Any]] = names["routine"]
    return routine


def _parse_steps(body: Sequence[Any], specs: list[Spec]) -> tuple[list[_Step], list[Any]]:
    """The steps, and the numbers that stand in them; the results' specs go to ``specs``, which has the inputs'."""
    inputs, size = len(specs), len(specs) + len(body)
    steps: list[_Step] = []
    numbers: list[Any] = []
    known: dict[Any, Spec] = {}  # a scan repeats its steps
    for at, (name, result, operands, params) in enumerate(body):
        if result != inputs + at:
            raise TensorError("define: a step's slot is not the next one")
        slots, operand_specs = [], []
        for operand in operands:
            if type(operand) is list:
                value, spec = parse_number(operand)
                numbers.append(value)
                slots.append(size + len(numbers) - 1)
            else:
                slots.append(_parse_slot(operand, result))
                spec = specs[operand]
            operand_specs.append(spec)
        kind = name, *operand_specs, repr(params)
        if kind not in known:
            known[kind] = infer(name, operand_specs, params)
        specs.append(known[kind])
        steps.append(_Step(name, slots, operand_specs, params, kind))
    return steps, numbers


def _parse_slot(slot: Any, below: int) -> int:
    if type(slot) is not int or not 0 <= slot < below:
        raise TensorError(f"define: there is no slot {slot!r:.40} below {below}")
    return slot


def _parse_spec(spec: Any) -> Spec:
    dtype, sizes = spec
    if dtype not in ITEM_BYTES and dtype not in WEAK:
        raise TensorError(f"there is no dtype {dtype!r:.40}")
    return dtype, infer("full", [], ["bool", sizes, 0])[1]


def _memory_roots(steps: Sequence[_Step], inputs: int, total: int) -> list[int]:
    """For each slot, the one whose memory it may share: its own, or its source's."""
    roots = list(range(total))
    for at, step in enumerate(steps):
        if OPERATIONS[step.name].view:
            roots[inputs + at] = roots[step.slots[0]]
    return roots


def _last_uses(
    steps: Sequence[_Step], roots: list[int], inputs: int, outputs: Sequence[int]
) -> dict[int, int]:
    """For each root, the last step that uses it or a view of it."""
    last_uses: dict[int, int] = {}
    for at, step in enumerate(steps):
        for slot in (*step.slots, inputs + at):
            last_uses[roots[slot]] = at
    last_uses.update(dict.fromkeys((roots[slot] for slot in outputs), len(steps)))
    return last_uses


def _peak_bytes(steps: Sequence[BoundStep], specs: Sequence[Spec]) -> int:
    now = peak = 0
    for step in steps:
        now += size_bytes(specs[step.result])
        peak = max(peak, now)
        now -= sum(size_bytes(specs[slot]) for slot in step.dead)
    return peak
