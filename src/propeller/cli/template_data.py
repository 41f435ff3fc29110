"""A little data for each device of a new project: made here, the same each time, and other on each device."""

import csv
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

_SAMPLES = 64
_SIZE = 12
_COLUMNS = ("age", "stay_days", "visits", "systolic", "glucose", "bmi")


@dataclass(frozen=True)
class Template:
    """A kind of project.

    Attributes:
        title: what its program is, for a person.
        suffix: of the data files.
        data: the content of a device's file, by the device's number from 1.
    """

    title: str
    suffix: str
    data: Callable[[int], str]


def _points(seed: int) -> str:
    """A noisy feature, and a small one that tells more; each device sees more of one label than of the other.

    Both are of a size at which gradient descent with the project's ``lr`` converges for a squared error, too: the programs that
    the documentation shows are put into a project like this one.
    """
    source = random.Random(seed)  # noqa: S311 - an example's data
    samples = []
    for _ in range(_SAMPLES):
        label = int(source.random() < seed / 4)
        sign = 1 if label else -1
        x = [round(source.gauss(sign / 4, 1), 3), round(source.gauss(-sign / 2, 0.3), 3)]
        samples.append({"x": x, "y": label})
    return _json(samples)


def _rings(seed: int) -> str:
    """Points in three rings around one another, which no straight line divides; each device sees one ring most."""
    source = random.Random(seed)  # noqa: S311 - an example's data
    samples = []
    for _ in range(3 * _SAMPLES):
        ring = seed - 1 if source.random() < 1 / 3 else source.randrange(3)
        angle, radius = source.uniform(0, 2 * math.pi), source.gauss(0.5 + 0.75 * ring, 0.12)
        samples.append(
            {"x": [round(radius * math.cos(angle), 3), round(radius * math.sin(angle), 3)], "y": ring}
        )
    return _json(samples)


def _pictures(seed: int) -> str:
    """Squares, crosses, rings and stripes somewhere in a small picture, with noise; each device sees two of them most."""
    source = random.Random(seed)  # noqa: S311 - an example's data
    samples = []
    for _ in range(4 * _SAMPLES):
        kind = (seed + source.randrange(2)) % 4 if source.random() < 1 / 2 else source.randrange(4)
        samples.append({"x": _picture(source, kind), "y": kind})
    return _json(samples)


def _picture(source: random.Random, kind: int) -> list[float]:
    half, width = source.randint(2, 4), _SIZE
    down, right = source.randint(half, width - 1 - half), source.randint(half, width - 1 - half)

    def is_drawn(row: int, column: int) -> bool:
        y, x = abs(row - down), abs(column - right)
        if max(x, y) > half:
            return False
        return (
            max(x, y) == half,
            min(x, y) == 0,
            abs(math.hypot(x, y) - half) < 0.6,
            (row - down) % 2 == 0,
        )[kind]

    return [
        round(
            min(max(is_drawn(at // width, at % width) * source.uniform(0.6, 1) + source.gauss(0, 0.1), 0), 1),
            2,
        )
        for at in range(width * width)
    ]


def _patients(seed: int) -> str:
    """A table of made-up patients, standardised: older ones with longer stays come back more often. Hospitals differ in who comes."""
    source = random.Random(seed)  # noqa: S311 - an example's data
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*_COLUMNS, "readmitted"])
    for _ in range(3 * _SAMPLES):
        row = [source.gauss((seed - 2) / 2 if number < 2 else 0, 1) for number in range(len(_COLUMNS))]
        risk = 1.5 * row[0] + row[1] + row[0] * row[4] + source.gauss(0, 0.5)
        lines.writerow([*(round(value, 3) for value in row), int(risk > 0)])
    return text.getvalue()


_ALPHABET = " abcdefghijklmnopqrstuvwxyz.,"
_WHO = (("sailor", "gull", "whale"), ("farmer", "crow", "horse"), ("baker", "cat", "mouse"))
_SEES = (
    ("waves", "an island", "the harbour"),
    ("the field", "a barn", "the wheat"),
    ("the oven", "warm bread", "the flour"),
)
_STEPS = 32


def _sentences(seed: int) -> str:
    """Sentences that follow a simple grammar, cut into pieces; each device has words of its own beside those of all."""
    source = random.Random(seed)  # noqa: S311 - an example's data
    text = ""
    while len(text) <= 2 * _SAMPLES * _STEPS:
        who, sees = (source.choice(words[seed - 1]) for words in (_WHO, _SEES))
        verb = source.choice(("sees", "likes", "looks for"))
        text += f"the {source.choice(('old', 'young', 'tired'))} {who} {verb} {sees}, " + source.choice(
            ("and the sun shines. ", "and it rains. ", "but it is late. ")
        )
    ids = [_ALPHABET.index(letter) for letter in text]
    starts = range(0, 2 * _SAMPLES * _STEPS, _STEPS)
    return _json([{"x": ids[at : at + _STEPS], "y": ids[at + 1 : at + _STEPS + 1]} for at in starts])


def _json(samples: list[dict[str, object]]) -> str:
    return '{"data": [\n  ' + ",\n  ".join(map(json.dumps, samples)) + "\n]}\n"


TEMPLATES = {
    "linear": Template("logistic regression, with its gradient written out", "json", _points),
    "mlp": Template("fully connected layers, on points in the plane", "json", _rings),
    "cnn": Template("a convolutional network, on small pictures", "json", _pictures),
    "text": Template("a recurrent network that predicts the next character", "json", _sentences),
    "tabular": Template("a network for a table of CSV files", "csv", _patients),
    "native": Template("scikit-learn on a table of CSV files, run by devices' own Python", "csv", _patients),
}
"""The kinds of projects, by the name that ``propeller new --template`` takes; the first is the default."""
