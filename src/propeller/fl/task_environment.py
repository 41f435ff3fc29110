"""What the programs of a round's participants are told in their environment (docs/programs.md)."""

from collections.abc import Sequence

from propeller.fl.selection import slot_seed
from propeller.protocol.rounds import RoundStart
from propeller.protocol.task import encode_json


def task_environments(start: RoundStart, participants: Sequence[str]) -> dict[str, dict[str, str]]:
    """For each participant of an experiment's round, in the order of slots, what it is told beside round, model and hyperparameters."""
    common = {"FL_MODE": start.mode, "EXPERIMENT_ID": start.experiment_id, "FL_ROUND": str(start.number)}
    if start.strategy:
        common["FL_STRATEGY"] = encode_json(start.strategy).decode()
    if start.split:
        common["FL_SPLIT"] = encode_json(start.split).decode()
    if start.update:
        common["FL_UPDATE"] = encode_json(start.update).decode()
    return {
        proplet_id: {**common, "FL_SEED": str(slot_seed(start.seed, start.number, slot))}
        for slot, proplet_id in enumerate(participants)
    }
