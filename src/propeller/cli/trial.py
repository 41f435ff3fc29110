"""A trial of a program: what it is given of files of this machine, its device state, and whether what it gives back would be taken."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from propeller.cli.experiment_file import ExperimentFile, read_dataset, read_model
from propeller.cli.terminal import print_note
from propeller.errors import InvalidError, StartError
from propeller.fl.strategies import Contribution, Strategy, read_strategy
from propeller.fl.tensors import (
    TensorError,
    Tensors,
    check_ranges,
    from_json,
    from_safetensors,
    specs_of,
    to_json,
    to_safetensors,
)
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import split_dataset
from propeller.proplet.updates import parse_program_output
from propeller.protocol.evaluations import EVALUATE
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.wire import MalformedMessageError, decode_trusted
from propeller.wasm.program_run import StateFolder
from propeller.wasm.task_inputs import MAX_ENV_BYTES, TENSORS_FILE

PROPLET_ID = "try"

EXPERIMENT_FILE = "experiment.toml"

_MARKER, _KEPT = ".propeller-try", "state"
"""In the folder of a trial's device state: a file by which it is known as one, and the state."""


@dataclass(frozen=True)
class TrialInputs:
    """What the command line says; None: as the experiment file beside the program has it.

    Attributes:
        model: the file to start from.
        data: the file with the device's data.
        hyperparams: those that differ from the experiment file's.
        mode: what the program is to do.
        strategy: a name, or an object with parameters.
        split: a ``data.split``.
        state: the folder in which device state is kept from run to run; without it there is none before and after the run.
        updates: those of an aggregation.
        label: the column with labels, where ``data`` is a table.
    """

    model: Path | None
    data: Path | None
    hyperparams: Mapping[str, Any] | None
    mode: str
    strategy: Any = None
    split: Mapping[str, Any] | None = None
    state: Path | None = None
    updates: tuple[Path, ...] = ()
    label: str | None = None


class Trial:
    """A task on files of this machine.

    Attributes:
        env: the environment that its program is given.
        files: the files that it is given, by name.
        limits: those of the experiment file, if there is one.
        from_experiment: what that file gave, for a person.
    """

    def __init__(self, program: Path, inputs: TrialInputs) -> None:
        """Read what is needed.

        Raises:
            StartError: A file is missing or is not what it should be; the text names it.
        """
        self._mode = inputs.mode
        experiment_file = program.parent / EXPERIMENT_FILE
        experiment = ExperimentFile.load(experiment_file) if experiment_file.is_file() else None
        self.from_experiment: list[str] = []
        self.limits = None if experiment is None else experiment.limits
        hyperparams = dict(inputs.hyperparams or {})
        if experiment is not None:
            kept = {name: one for name, one in experiment.hyperparams.items() if name not in hyperparams}
            hyperparams = {**experiment.hyperparams, **hyperparams}
            if kept:
                self.from_experiment.append(f"hyperparams {json.dumps(kept)}")
        self._model = self._read_model(inputs.model, experiment, experiment_file, hyperparams)
        self._strategy = self._find_strategy(inputs.strategy, experiment)
        dataset = json.dumps(self._read_dataset(inputs.data, inputs.label, experiment, experiment_file))
        split, named = inputs.split, "--split"
        if split is None and experiment is not None and experiment.split is not None:
            split, named = experiment.split, f"{experiment_file}: data.split"
            self.from_experiment.append(f"data.split {json.dumps(split)}")
        if split is not None:
            dataset = _part_of(dataset, split, inputs.mode, named)
        document = to_safetensors(self._model)
        texts = {
            **({"model.json": json.dumps(to_json(self._model))} if len(document) <= LARGE_BYTES else {}),
            "dataset.json": dataset,
            "hyperparams.json": json.dumps(hyperparams),
        }
        self.files = {name: text.encode() for name, text in texts.items()}
        self.files["model.safetensors"] = document
        self.env = {
            "ROUND_ID": "r-try",
            "PROPLET_ID": PROPLET_ID,
            "MODEL_URI": "fl/models/global_model_v0",
            "HYPERPARAMS": texts["hyperparams.json"],
            "FL_MODE": inputs.mode,
            "EXPERIMENT_ID": "try",
            "FL_ROUND": "1",
            "FL_SEED": "0",
        }
        if told := self._strategy.for_devices({}):
            self.env["FL_STRATEGY"] = json.dumps(told)
        if experiment is not None and experiment.spec.update.kind != "weights":
            self.env["FL_UPDATE"] = json.dumps({"kind": experiment.spec.update.kind})
        for variable, name in (("MODEL_DATA", "model.json"), ("DATASET_DATA", "dataset.json")):
            if name in texts and len(texts[name]) < MAX_ENV_BYTES:
                self.env[variable] = texts[name]

    def refusal_reason(self, stdout: bytes, out_files: Mapping[str, bytes]) -> str | None:
        """Why a proplet or the coordinator would refuse what the program gave back; ``None`` if they would not."""
        safetensors = out_files.get(TENSORS_FILE)
        try:
            header = parse_program_output(stdout, safetensors, self.env, PROPLET_ID).header
            for name, kind in (header.metrics_left_out or {}).items():
                print_note(f"note: metrics: {name!r} is {kind}: left out; a metric is one finite number")
            if self._mode == "train":
                self._strategy.check(
                    Contribution(0, PROPLET_ID, header.num_samples, header.steps, header.metrics)
                )
                base = specs_of(self._model)
                update = (
                    from_json(decode_trusted(stdout)["update"], base)
                    if safetensors is None
                    else from_safetensors(safetensors)[0]
                )
                self._strategy.check_update(self._model, update)
                if header.kind == "weights":
                    check_ranges(update, {name: spec for name, spec in base.items() if name in update})
        except TensorError as error:
            return f"the update: {error}"
        except (TaskError, InvalidError) as error:
            return str(error)
        return None

    def _find_strategy(self, given: Any, experiment: ExperimentFile | None) -> Strategy:
        where = "--strategy"
        if given is None and experiment is not None and experiment.spec.strategy.program is None:
            given, where = experiment.spec.strategy.to_json(), EXPERIMENT_FILE
            if given != {"name": "fedavg"}:
                self.from_experiment.append(f"strategy {json.dumps(given)}")
        try:
            return read_strategy("fedavg" if given is None else given)
        except InvalidError as error:
            raise StartError(f"{where}: {error}") from None

    def _read_model(
        self,
        file: Path | None,
        experiment: ExperimentFile | None,
        experiment_file: Path,
        hyperparams: Mapping[str, Any],
    ) -> Tensors:
        found: dict[str, Any] | None = None
        if file is None and experiment is not None:
            found = experiment.tensors
            file = None if experiment.model_file is None else experiment.folder / experiment.model_file
            self.from_experiment.append("model")
        if file is None and found is None:
            raise StartError(
                f"give a model to start from: --model FILE, or tensors in [model] of {experiment_file}"
            )
        if file is not None:
            found = read_model(file, hyperparams)
        try:
            return _as_tensors(found or {})
        except TensorError as error:
            raise StartError(f"{file or experiment_file}: model: {error}") from None

    def _read_dataset(
        self,
        file: Path | None,
        label: str | None,
        experiment: ExperimentFile | None,
        experiment_file: Path,
    ) -> dict[str, Any]:
        if file is not None:
            return read_dataset(file, label, "--data", "--label")
        if label is not None:
            raise StartError("--label: names a column of --data FILE: give that, too")
        if experiment is None or (first := experiment.first_data_file) is None:
            raise StartError(f"give a device's data: --data FILE, or files in [data] of {experiment_file}")
        self.from_experiment.append(f"data {first}")
        return experiment.read_dataset(first)


class TrialState:
    """Device state of one run. Use with ``with``; ``keep`` takes what the run left for the next one.

    It is in a folder that a trial made, known by a file in it: it is replaced as a whole, which would be bad for any other.
    """

    def __init__(self, cache: Path, kept: Path | None, *, changes: bool) -> None:
        """Args: cache: has the sandbox's folder; kept: the user's folder; changes: whether the run may change it.

        Raises:
            StartError: the folder is none, or holds something else.
        """
        if kept is not None and kept.exists():
            _check_is_of_trials(kept)
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._kept = kept
        self._temporary = tempfile.TemporaryDirectory(dir=cache, prefix="try-")
        left = Path(self._temporary.name) / "left"
        source = None if kept is None else kept / _KEPT
        self.folder = StateFolder(source if source and source.is_dir() else None, left if changes else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def keep(self) -> None:
        """Keep what the run left, if the user gave a folder for it and the run left something."""
        left = self.folder.target
        if self._kept is None or left is None or not left.exists():
            return
        self._kept.mkdir(parents=True, exist_ok=True)
        (self._kept / _MARKER).write_text("Device state of `propeller try`, replaced by each run.\n")
        new, old, place = (self._kept / name for name in (f"{_KEPT}.new", f"{_KEPT}.old", _KEPT))
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(left, new)
        if place.exists():
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def _check_is_of_trials(folder: Path) -> None:
    if not folder.is_dir():
        raise StartError(f"--device-state {folder}: it is not a folder")
    if any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise StartError(
            f"--device-state {folder}: it holds something else than the device state of trials; give an empty folder or a new one"
        )


def _as_tensors(model: Mapping[str, Any]) -> Tensors:
    """Arrays as they are, numbers and lists as JSON has them."""
    lists = {name: value for name, value in model.items() if not hasattr(value, "__array__")}
    return {
        **(from_json(lists) if lists else {}),
        **{name: value for name, value in model.items() if name not in lists},
    }


def _part_of(dataset: str, split: Mapping[str, Any], mode: str, named: str) -> str:
    """What a device would give its program of a dataset that is split; ``named`` is what errors call the split."""
    try:
        content, samples = split_dataset(dataset.encode(), json.dumps(split), evaluates=mode == EVALUATE)
    except (ValueError, MalformedMessageError) as error:
        raise StartError(f"{named}: {error}") from None
    print_note(f"{samples} samples {'are held out' if mode == EVALUATE else 'to train on'}")
    return content.decode()
