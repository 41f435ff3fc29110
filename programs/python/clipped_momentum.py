"""A strategy as a program: the mean of clipped updates, with momentum on the server.

Each update's difference to the base model is scaled down to a norm of at most ``clip``; the mean of the differences, weighted by
samples, drives a velocity that is kept from round to round: ``velocity = momentum · velocity + mean``, ``model = base + lr · velocity``.
Parameters: ``clip`` 10.0, ``momentum`` 0.9, ``lr`` 1.0.

Build it with ``propeller build programs/python/clipped_momentum.py -o clipped_momentum.wasm``, push it, and name it in the experiment:
``strategy = {program = "127.0.0.1:5000/clipped-momentum:v1", clip = 5.0}``.
"""

from propeller.program import Aggregate, aggregate
from propeller.program import tensors as pt


def difference(update, names):
    """An update's difference to its base, in float64, and its norm."""
    delta = {
        name: update.model[name].astype("float64") - update.base[name].astype("float64") for name in names
    }
    return delta, float(sum(pt.square(each).sum() for each in delta.values())) ** 0.5


@aggregate
def merge(base, updates, state, params, ctx):
    clip, momentum, lr = (params.get(*each) for each in (("clip", 10.0), ("momentum", 0.9), ("lr", 1.0)))
    if clip <= 0:
        raise ValueError(f"clip is {clip}; it must be greater than 0")
    total = sum(update.num_samples for update in updates)
    mean = {name: pt.zeros(base[name].shape, "float64") for name in base}
    clipped = 0
    for update in updates:  # one at a time: only this one is in memory
        delta, norm = difference(update, base)
        clipped += norm > clip
        scale = update.num_samples / total * min(1.0, clip / max(norm, 1e-300))
        for name in base:
            mean[name] += scale * delta[name]
    print(f"{clipped} of {len(updates)} updates were clipped")  # appears in the aggregator's log
    velocity = {name: momentum * state[name] + mean[name] if name in state else mean[name] for name in base}
    model = {name: base[name].astype("float64") + lr * velocity[name] for name in base}
    return Aggregate(model, {**velocity, "clipped": state.get("clipped", 0) + clipped})
