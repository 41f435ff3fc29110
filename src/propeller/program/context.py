"""Which task this is, and what comes with it beside model and data."""

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from propeller.errors import InvalidError
from propeller.program.correction import Correction
from propeller.program.device_state import DeviceState, TaskState


@dataclass(frozen=True, eq=False)
class Context:
    """A task: of which round and experiment, with which strategy, state and seed.

    Attributes:
        round_id: of the round, or of the evaluation.
        proplet_id: of the device.
        model_uri: the reference of the base model.
        environment: every variable of the task.
        round: the number of the round in its experiment, from 1; 0 where there is no experiment.
        experiment_id: empty where there is no experiment.
        seed: for what is drawn: other for each round and participant, the same when the round is done again.
        strategy: what the experiment's strategy tells devices: its ``name`` and values.
        update: what the experiment has devices send, where it says so: ``{"kind": "delta"}``. It is made from what is returned.
        state: what the program keeps on this device from round to round.
        correct: ``correct(gradients, weights)`` adds what the strategy has devices minimise beside their loss.
        personal: this is the training of a model that stays on the device (Ditto).
    """

    round_id: str = ""
    proplet_id: str = ""
    model_uri: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    round: int = 0
    experiment_id: str = ""
    seed: int = 0
    strategy: Mapping[str, Any] = field(default_factory=dict)
    update: Mapping[str, Any] = field(default_factory=dict)
    state: MutableMapping[str, Any] = field(default_factory=DeviceState)
    correct: Correction = field(default_factory=Correction)
    personal: bool = False

    @classmethod
    def of_task(cls, root: Path, environment: Mapping[str, str]) -> "Context":
        """The context that a task's environment describes.

        Args:
            root: of the task's files.
            environment: the task's.

        Raises:
            InvalidError: a variable is not what it should be; the text names it.
        """
        return cls(
            round_id=environment.get("ROUND_ID", ""),
            proplet_id=environment.get("PROPLET_ID", ""),
            model_uri=environment.get("MODEL_URI", ""),
            environment=environment,
            round=_count(environment, "FL_ROUND"),
            experiment_id=environment.get("EXPERIMENT_ID", ""),
            seed=_count(environment, "FL_SEED"),
            strategy=_object(environment, "FL_STRATEGY"),
            update=_object(environment, "FL_UPDATE"),
            state=TaskState(root, environment),
        )


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or "0"
    if not (text.isascii() and text.isdigit()):
        raise InvalidError(f"{name} is {text[:80]!r}; it is a whole number of 0 or more")
    return int(text)


def _object(environment: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(environment.get(name) or "{}")
    except ValueError as error:
        raise InvalidError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidError(f"{name} is not a JSON object")
    return value
