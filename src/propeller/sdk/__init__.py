"""A Python client of a running Propeller: start rounds, wait for them, read models.

from propeller.sdk import Propeller

with Propeller.from_state(".propeller") as fl:
    result = fl.run_round(image=fl.image(), hyperparams={"epochs": 1, "lr": 0.1})
    print(result.model_version, fl.model(result.model_version))
"""

from propeller.errors import PropellerError
from propeller.sdk.client import Propeller, RoundResult

__all__ = ["Propeller", "PropellerError", "RoundResult"]
