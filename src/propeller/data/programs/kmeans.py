"""k-means over all devices' data, for the strategy ``sum``: a round is a step of Lloyd's algorithm.

Lloyd, *Least Squares Quantization in PCM*, IEEE Transactions on Information Theory 28(2), 1982. Over devices: each sends, for each
cluster, the sum and the number of its own samples nearest to the centre, and the squared distances to it; the sums over all devices
are those of all samples together.

Model: ``centres`` [clusters x features], the first centres, and zeros: ``sums`` as ``centres``, ``counts`` [clusters], ``inertia`` [].
Strategy: ``sum`` with ``maximum = ["centres"]``: all devices say the same centres. Data: ``{"x": [features]}``; the hyperparameter
``column`` names another one.

A round's centres are the sums of the round before, divided by its counts; a cluster without samples keeps its centre. ``inertia`` is
the sum of squared distances to the round's centres.
"""

import math

from propeller.program import Update, train


def next_centres(centres, sums, counts):
    """Where the means of the clusters are."""
    return [
        [number / count for number in total] if count else centre
        for centre, total, count in zip(centres, sums, counts, strict=True)
    ]


def nearest(sample, centres):
    """The first of the nearest centres, and the squared distance to it."""
    distances = [math.fsum((a - b) ** 2 for a, b in zip(sample, centre, strict=True)) for centre in centres]
    least = min(distances)
    return distances.index(least), least


@train
def step(model, data, hyperparams, ctx):
    centres = next_centres(*(model[name].tolist() for name in ("centres", "sums", "counts")))
    column = hyperparams.get("column", "x")
    members, inertia = [[] for _ in centres], []
    for sample in data.samples:
        cluster, distance = nearest(sample[column], centres)
        members[cluster].append(sample[column])
        inertia.append(distance)
    features = range(len(centres[0]))
    sums = [[math.fsum(sample[at] for sample in group) for at in features] for group in members]
    found = {
        "centres": centres,
        "sums": sums,
        "counts": list(map(len, members)),
        "inertia": math.fsum(inertia),
    }
    return Update(found, num_samples=1)  # the history tells nobody how much data a device has
