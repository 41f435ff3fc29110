"""Gradient-boosted trees over devices: each adds a tree of its own data to the ensemble of all, and the trees are what travels.

Chen and Guestrin, *XGBoost: A Scalable Tree Boosting System*, KDD 2016 (arXiv:1603.02754): trees of the logistic loss' first and second
derivatives, equations 5 to 7. As in Flower's ``FedXgbBagging`` the trees of a round, one of each device, are all made for the ensemble
of the rounds before, and each counts by one part of ``devices``.

Model: ``trees``, bytes: a line of JSON for each tree, an inner node as ``[feature, threshold, below, above]``, a leaf as its number. Data:
``{"x": [features], "y": 0 or 1}``. Hyperparameters: ``devices`` of a round 1, ``lr`` 0.3, ``depth`` 3, ``l2`` 1.0, ``bins`` 16.
"""

import json
import math

from propeller.program import Evaluation, Update, evaluate, initial_model, train
from propeller.program import tensors as pt


def read_trees(content):
    return [json.loads(line) for line in bytes(content.tolist()).decode().splitlines()]


def leaf_of(tree, x):
    """What a tree says of a sample."""
    while isinstance(tree, list):
        feature, threshold, below, above = tree
        tree = below if x[feature] < threshold else above
    return tree


def probability(score):
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0


def grow(rows, features, slopes, curves, depth, l2):
    """The tree of these rows; ``features`` has for each its thresholds."""
    slope, curve = sum(slopes[row] for row, _ in rows), sum(curves[row] for row, _ in rows)
    best = None
    for feature, thresholds in enumerate(features) if depth else ():
        for threshold in thresholds:
            below = [row for row, x in rows if x[feature] < threshold]
            if not 0 < len(below) < len(rows):
                continue
            left, left_curve = sum(slopes[row] for row in below), sum(curves[row] for row in below)
            right, right_curve = slope - left, curve - left_curve
            gain = left**2 / (left_curve + l2) + right**2 / (right_curve + l2) - slope**2 / (curve + l2)
            if best is None or gain > best[0]:
                best = gain, feature, threshold
    if best is None or best[0] < 1e-9:
        return -slope / (curve + l2)
    _, feature, threshold = best
    parts = (
        [one for one in rows if one[1][feature] < threshold],
        [one for one in rows if one[1][feature] >= threshold],
    )
    return [feature, threshold, *(grow(part, features, slopes, curves, depth - 1, l2) for part in parts)]


def scaled(tree, by):
    """A tree with its leaves times a number, of six digits."""
    if isinstance(tree, list):
        return [*tree[:2], *(scaled(branch, by) for branch in tree[2:])]
    return round(tree * by, 6)


def thresholds_of(values, bins):
    """Some numbers between which as many values are."""
    ordered = sorted(values)
    return sorted({ordered[len(ordered) * number // bins] for number in range(1, bins)})


@initial_model
def no_trees(hyperparams):
    return {"trees": pt.zeros(0, "uint8")}


@train
def boost(model, data, hyperparams, ctx):
    given, trees = hyperparams.get, read_trees(model["trees"])
    samples = data.samples
    xs, ys = [sample["x"] for sample in samples], [sample["y"] for sample in samples]
    said = [probability(sum(leaf_of(tree, x) for tree in trees)) for x in xs]
    slopes = [p - y for p, y in zip(said, ys, strict=True)]
    curves = [p * (1 - p) for p in said]
    features = [thresholds_of(column, given("bins", 16)) for column in zip(*xs, strict=True)]
    tree = grow(list(enumerate(xs)), features, slopes, curves, given("depth", 3), given("l2", 1.0))
    line = json.dumps(scaled(tree, given("lr", 0.3) / given("devices", 1))) + "\n"
    return Update({"trees": pt.array(list(line.encode()), "uint8")}, len(xs), loss_and_accuracy(said, ys))


@evaluate
def score(model, data, hyperparams, ctx):
    trees, samples = read_trees(model["trees"]), data.samples
    said = [probability(sum(leaf_of(tree, sample["x"]) for tree in trees)) for sample in samples]
    return Evaluation(len(samples), loss_and_accuracy(said, [sample["y"] for sample in samples]))


def loss_and_accuracy(said, ys):
    right = [p if y else 1 - p for p, y in zip(said, ys, strict=True)]
    loss = -sum(math.log(max(one, 1e-12)) for one in right) / len(right)
    return {"loss": loss, "accuracy": sum(one > 0.5 for one in right) / len(right)}
