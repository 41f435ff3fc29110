"""Statistics of a device's data, column by column, for the strategy ``sum``: nothing is trained.

The model says what is asked. Of a column ``age`` (or ``x[3]``, the fourth number of the lists in ``x``) it may have

``age.count``, ``age.missing``: how many records have a number there, and how many do not (integers)
``age.sum``, ``age.min``, ``age.max``: of those numbers (``strategy.minimum`` and ``.maximum`` name the latter two)
``age.squares``: the sum of ``(number - age.centre)²``, where ``age.centre`` is the mean of the round before
``age.bins``: how many are in each of equal parts of the range from ``age.low`` to ``age.high``: that of the hyperparameter
``ranges``, as ``{"age": [0, 120]}``, else the smallest and the largest number of the round before
``age.sketch``: of texts and integers, how often they occur (``heavy_hitters.py``)

So the second round has all of it. What is beyond the range counts in the part at its end.
"""

import math
from collections import Counter

from heavy_hitters import HeavyHitters

from propeller.program import Update, train

BEYOND = 1.7976931348623157e308  # the largest float64, where a device has no number
ZERO = 5e-324  # the smallest number above 0, for a sum that is 0: with 0 the device would count as one that has nothing


def column_values(samples, column):
    """What each record has in a column, ``None`` where it lacks it."""
    name, bracket, place = column.partition("[")
    values = [sample.get(name) for sample in samples]
    if not bracket:
        return values
    at = int(place.rstrip("]"))
    return [value[at] if isinstance(value, list) and at < len(value) else None for value in values]


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def bins_of(numbers, low, high, count):
    """How many numbers are in each of equal parts of a range; all are in the first where it is one point."""
    bins = [0] * count
    width = (high - low) / count
    for number in numbers:
        bins[min(max(int((number - low) / width), 0), count - 1) if width > 0 else 0] += 1
    return bins


def total(numbers):
    """The sum, and 0 only if there is no number."""
    return (math.fsum(numbers) or ZERO) if numbers else 0.0


def number_statistics(model, column, values, declared):
    """The statistics of a column's numbers, by the names that they may have in the model."""
    numbers = [float(value) for value in values if is_number(value)]

    def before(name):
        return model[f"{column}.{name}"].item() if f"{column}.{name}" in model else 0

    centre = before("sum") / before("count") if before("count") else 0.0
    low, high = declared or ((before("min"), before("max")) if before("count") else (0, 0))
    bins = model.get(f"{column}.bins")
    return {
        "count": len(numbers),
        "missing": len(values) - len(numbers),
        "sum": total(numbers),
        "min": min(numbers, default=BEYOND),
        "max": max(numbers, default=-BEYOND),
        "centre": centre,
        "squares": total([(number - centre) ** 2 for number in numbers]),
        "low": float(low),
        "high": float(high),
        "bins": None if bins is None else bins_of(numbers, low, high, bins.shape[0]),
    }


def sketch_of(values, shape):
    """A sketch of a column's texts and integers."""
    texts = Counter(str(value) for value in values if isinstance(value, str | int))
    return HeavyHitters.of_shape(shape).count(texts)


@train
def measure(model, data, hyperparams, ctx):
    samples, ranges = data.samples, hyperparams.get("ranges", {})
    found = {}
    for column in {name.rpartition(".")[0] for name in model}:
        values = column_values(samples, column)
        sketch = model.get(f"{column}.sketch")
        if sketch is not None:
            found[f"{column}.sketch"] = sketch_of(values, sketch.shape)
        for name, value in number_statistics(model, column, values, ranges.get(column)).items():
            if f"{column}.{name}" in model:
                found[f"{column}.{name}"] = value
    return Update(found, num_samples=1)  # the history tells nobody how much data a device has
