"""What one device may count for: its numbers are held to the bounds of its round before they weigh."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from propeller.errors import UnprocessableError
from propeller.fl.strategies.strategy import EXTRA
from propeller.fl.strategies.sums import SUM_BLOCK, blocks
from propeller.fl.tensors import Tensors, is_floating
from propeller.protocol.bounds import UpdateBounds


class OutOfBoundsError(UnprocessableError):
    """A number of an update is beyond a bound of its round; the text names the sender, the number, the bound and its field."""


def check_numbers(
    bounds: UpdateBounds,
    sender: str,
    num_samples: int,
    steps: int | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Check what an update or an evaluation says of itself.

    Raises:
        OutOfBoundsError: a number is beyond its bound.
    """
    counts = (("num_samples", num_samples, "max_samples"), ("steps", steps, "max_steps"))
    for name, number, field in counts:
        most = getattr(bounds, field)
        if number is not None and number > most:
            raise OutOfBoundsError(
                f"{name}: {sender} says {number}, more than the {most} of update.{field}; raise it if the number is right"
            )
    for name, (low, high) in (bounds.metric_ranges or {}).items():
        value = (metrics or {}).get(name)
        if value is not None and not low <= value <= high:
            raise OutOfBoundsError(
                f"metrics: {sender} says that {name} is {value:g}, which is not from {low:g} to {high:g} "
                "(update.metric_ranges); widen the range if the number is right"
            )


def counted_samples(samples: Sequence[int], max_share: float | None) -> list[int]:
    """By how many samples each update counts, so that none has more than a share of all that count.

    The largest are cut to one number, the largest whole one at which none is over its share; others stay as they are. Where
    the share is too small for so few updates (``max_share`` below ``1 / n``), all count the same.

    Args:
        samples: of each update, at least 1.
        max_share: above 0, to 1; ``None``: each counts by all of its samples.
    """
    if max_share is None or not samples:
        return list(samples)
    share = Fraction(str(max_share))  # the decimal that was written, not the binary number next to it
    ordered = sorted(samples, reverse=True)
    rest, most = sum(ordered), ordered[-1]
    for cut, largest in enumerate(ordered):
        # If the ``cut`` largest count c: c <= share * (cut * c + rest).
        found = math.floor(share * rest / (1 - share * cut))
        if largest <= found:
            most = found
            break
        rest -= largest
    return [min(count, most) for count in samples]


def difference_norms(
    update: Tensors, base: Tensors, kind: Literal["weights", "delta"] = "weights"
) -> dict[str, float]:
    """The Euclidean norm of an update's difference to its base model, under ``""``, and of each kind of tensors beside the model's.

    In float64; infinite where it leaves that. Integers and truth values have no part in it, as with strategies' norms (``measurement``).

    Args:
        update: the tensors, of which those named ``@KIND/…`` are differences already; their norm is under ``@KIND``.
        base: the base model's tensors.
        kind: of the update.
    """
    squares: dict[str, float] = {}
    with np.errstate(over="ignore"):
        for name in sorted(update):
            if not is_floating(update[name].dtype):
                continue
            beside = name.partition("/")[0] if name.startswith(EXTRA) else ""
            from_base = base[name].reshape(-1) if kind == "weights" and not beside else None
            flat = update[name].reshape(-1)
            for start, end in blocks(flat.size, SUM_BLOCK):
                block = flat[start:end].astype(np.float64)
                if from_base is not None:
                    block -= from_base[start:end]
                squares[beside] = squares.get(beside, 0.0) + float(block @ block)
    return {beside: math.sqrt(square) for beside, square in squares.items()}


def check_norm(
    bounds: UpdateBounds,
    sender: str,
    update: Tensors,
    base: Tensors,
    kind: Literal["weights", "delta"] = "weights",
) -> None:
    """Check the norms of an update, as ``difference_norms``; ``sender`` is for the error.

    Raises:
        OutOfBoundsError: one is longer than ``max_norm``.
    """
    if bounds.max_norm is None:
        return
    for beside, norm in difference_norms(update, base, kind).items():
        if not norm <= bounds.max_norm:
            raise OutOfBoundsError(
                f"update: {norm_of(beside)} is {norm:.6g} for {sender}, more than the {bounds.max_norm:g} of update.max_norm; "
                "raise it if the update is right"
            )


def norm_of(beside: str) -> str:
    """What a norm of ``difference_norms`` is called."""
    return f"the norm of its tensors {beside}/…" if beside else "the norm of its difference to the base model"
