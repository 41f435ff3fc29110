"""Which of a device's samples are held out from training, for evaluation."""

import random


def split_positions(count: int, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the positions below ``count`` into those to train on and those that are held out, each in their order.

    Each position has a number that depends on the seed and the position alone, and those with the smallest are held out: the
    split is the same whenever it is asked for, and hardly changes when samples are added at the end. At least one
    position is on each side.

    Args:
        count: of samples, 2 or more.
        holdout: the part that is held out, between 0 and 1.
        seed: of the choice.

    Raises:
        ValueError: there are fewer than 2 samples.
    """
    if count < 2:
        raise ValueError(f"{count} samples cannot be split: at least 2 are needed")
    source = random.Random(seed)  # noqa: S311 - no secret; random() is the same in every version of Python
    draws = [source.random() for _ in range(count)]
    size = min(max(1, round(count * holdout)), count - 1)
    held_out = set(sorted(range(count), key=draws.__getitem__)[:size])
    return [at for at in range(count) if at not in held_out], sorted(held_out)
