"""Included programs as plain functions, and rounds of them in memory."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

import propeller.data.programs
from propeller.fl.strategies import Contribution, aggregate, read_strategy
from propeller.fl.tensors import Tensors
from propeller.program import Context, Data, registry
from propeller.sdk import Experiment
from propeller.tensors.functions import array

FOLDER = str(propeller.data.programs.__path__[0])


def included(name: str) -> ModuleType:
    """The module of an included program; what stands beside it is found as in a built one."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    registry.reset()
    try:
        return importlib.import_module(name)
    finally:
        registry.reset()


def run_rounds(
    experiment: Experiment, train: Any, datasets: Sequence[Sequence[Mapping[str, Any]]]
) -> Tensors:
    """The model after all rounds of an experiment on these devices."""
    spec = experiment.spec
    strategy = read_strategy(spec.strategy.to_json())
    assert isinstance(experiment.model, Mapping)
    model: Tensors = {name: np.asarray(value) for name, value in experiment.model.items()}
    for number in range(spec.rounds):
        received = []
        for slot, samples in enumerate(datasets):
            given = {name: array(value.tolist(), str(value.dtype)) for name, value in model.items()}
            context = Context(round=number + 1)
            update = train(given, Data(samples), dict(experiment.hyperparams or {}), context)
            tensors = {
                name: np.array(value.tolist() if hasattr(value, "tolist") else value)
                for name, value in update.model.items()
            }
            received.append((Contribution(slot, f"p-{slot}", update.num_samples), tensors))
        model = aggregate(strategy, model, None, received)[0]
    return model
