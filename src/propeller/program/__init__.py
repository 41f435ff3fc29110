"""What a training program is written with: a function, its data as arrays, and the update that it gives back.

    from propeller.program import Update, train

    @train
    def fit(model, data, hyperparams, ctx):
        w = model["w"].copy()
        for _ in range(hyperparams.get("epochs", 1)):
            w -= hyperparams.get("lr", 0.1) * (data.x.T @ (data.x @ w - data.y)) / len(data)
        return Update({"w": w}, num_samples=len(data))

Built into a Wasm component it runs in the sandbox, where ``tensors`` are done by the host at NumPy's speed; called as it is, it runs
natively, in a debugger or a test.
"""

from propeller.program.aggregation import Aggregate, DeviceUpdate
from propeller.program.context import Context
from propeller.program.data import Data, batches
from propeller.program.device_state import DeviceState
from propeller.program.registry import Evaluation, Update, aggregate, evaluate, initial_model, train

__all__ = [
    "Aggregate",
    "Context",
    "Data",
    "DeviceState",
    "DeviceUpdate",
    "Evaluation",
    "Update",
    "aggregate",
    "batches",
    "evaluate",
    "initial_model",
    "train",
]
