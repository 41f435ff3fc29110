"""``propeller try --mode aggregate``: a strategy that is a program, on updates in files, as the aggregator would run it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from propeller.aggregator.program_task import MODE, TASK_FILE, read_aggregate, write_task
from propeller.errors import InvalidError, StartError, UnprocessableError
from propeller.fl.strategies import create_strategy
from propeller.fl.tensors import TensorError, Tensors, from_json, from_safetensors, specs_of, to_safetensors
from propeller.protocol.aggregation import PlannedContribution
from propeller.protocol.updates import UpdateMessage
from propeller.protocol.wire import MalformedMessageError, decode_trusted

AGGREGATE = MODE


class AggregationTrial:
    """An aggregation on files of this machine.

    Attributes:
        env: the environment that the program is given.
        files: the files that it is given, by name.
        limits: asked for beside those of the command line: none.
        from_experiment: what an experiment file gave: nothing.
    """

    limits = None
    from_experiment = ()

    def __init__(self, model: Path | None, updates: Sequence[Path], params: Mapping[str, Any] | None) -> None:
        """Read what is needed.

        Args:
            model: the base model, JSON or safetensors.
            updates: as programs print them, or safetensors.
            params: the strategy's parameters.

        Raises:
            StartError: A file is missing or is not what it should be; the text names it.
        """
        if model is None or not updates:
            raise StartError(
                "an aggregation needs a base model and updates: --model FILE, and --update FILE for each, with what "
                "`propeller try` of a training program printed"
            )
        base = _read_tensors(model, _read(model))
        self._expected = specs_of(base)
        self.files = {"model.safetensors": to_safetensors(base)}
        contributions = []
        for slot, file in enumerate(updates):
            contribution, tensors = _read_update(file, slot)
            try:
                create_strategy("fedavg").check_update(base, tensors)
            except TensorError as error:
                raise StartError(f"{file}: update: {error}") from None
            contributions.append(contribution)
            self.files[f"update-{slot}.safetensors"] = to_safetensors(tensors)
        self.files[TASK_FILE] = write_task(params or {}, {}, contributions)
        self.env = {"ROUND_ID": "r-try", "FL_MODE": MODE}

    def refusal_reason(self, stdout: bytes, out_files: Mapping[str, bytes]) -> str | None:
        """Why the aggregator would refuse what the program gave back; ``None`` if it would not."""
        try:
            read_aggregate(stdout, out_files, self._expected)
        except UnprocessableError as error:
            return str(error)
        return None


def _read_update(file: Path, slot: int) -> tuple[PlannedContribution, Tensors]:
    content = _read(file)
    if file.suffix == ".safetensors":
        return PlannedContribution(proplet_id=file.stem, num_samples=1), _read_tensors(file, content)
    try:
        update = UpdateMessage.decode(decode_trusted(content))
        tensors = from_json(update.update)
        contribution = PlannedContribution(
            proplet_id=update.proplet_id,
            slot=slot,
            num_samples=update.num_samples,
            steps=update.steps,
            metrics=update.metrics,
        )
    except InvalidError as error:
        raise StartError(f"{file}: not an update: {error}") from None
    return contribution, tensors


def _read_tensors(file: Path, content: bytes) -> Tensors:
    try:
        if file.suffix == ".safetensors":
            return from_safetensors(content)[0]
        return from_json(decode_trusted(content))
    except (TensorError, MalformedMessageError) as error:
        raise StartError(f"{file}: {error}") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
