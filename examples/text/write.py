#!/usr/bin/env python3
"""Writes verse with a trained model: ``python3 write.py result/best.safetensors [BEGINNING]``.

Each character is drawn: the likelier the network thinks it, the more often it comes.
"""

import random
import sys

from safetensors.numpy import load_file
from train import ALPHABET, net

from propeller.program import tensors as pt

CHARACTERS, TEMPERATURE = 250, 0.5
"""How many are written, and how bold the draws are: near 0 it is the likeliest character each time."""


def write(model, beginning, characters=CHARACTERS, seed=1):
    """The beginning, and what the network has after it."""
    draws, text, state = random.Random(seed), beginning, None  # noqa: S311 - for verse
    given = [ALPHABET.index(letter) for letter in text.lower()]
    for _ in range(characters):
        scores, state = net.apply(model, pt.array([given], "int64"), state)
        given = draws.choices(range(len(ALPHABET)), pt.softmax(scores[-1] / TEMPERATURE).tolist())
        text += ALPHABET[given[0]]
    return text


if __name__ == "__main__":
    model = {name: pt.array(tensor.tolist(), "float32") for name, tensor in load_file(sys.argv[1]).items()}
    print(write(model, sys.argv[2] if len(sys.argv) > 2 else "the "))
