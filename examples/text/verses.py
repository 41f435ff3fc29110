#!/usr/bin/env python3
"""Writes the verses of each author as a device's data: ``data/carroll.json`` and so on, beside this file.

A sample is 48 characters, and for each the one after it.
"""

import json
from pathlib import Path

from train import ALPHABET

STEPS = 48
HERE = Path(__file__).parent


def main() -> None:
    """Write the files."""
    (HERE / "data").mkdir(exist_ok=True)
    for verses in sorted((HERE / "verses").glob("*.txt")):
        ids = [ALPHABET.index(letter) for letter in verses.read_text(encoding="utf-8").lower()]
        starts = range(0, len(ids) - STEPS, STEPS)
        samples = [{"x": ids[at : at + STEPS], "y": ids[at + 1 : at + STEPS + 1]} for at in starts]
        (HERE / "data" / f"{verses.stem}.json").write_text(json.dumps({"data": samples}))


if __name__ == "__main__":
    main()
