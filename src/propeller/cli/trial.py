"""What ``propeller try`` gives to a program, as a proplet would, and how what comes back is judged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.cli.experiment import ExperimentFile
from propeller.fl.tensors import (
    TensorError,
    Tensors,
    check_shapes,
    from_json,
    from_safetensors,
    shapes_of,
    to_json,
    to_safetensors,
)
from propeller.process.run import StartError
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import MAX_ENV_BYTES
from propeller.proplet.updates import TENSORS_FILE, parse_program_output
from propeller.protocol.wire import MalformedMessageError, decode_object

PROPLET = "try"
_EXPERIMENT = "experiment.toml"


@dataclass(frozen=True)
class Asked:
    """What the command line says; None: as the experiment file beside the program has it."""

    model: Path | None
    data: Path | None
    hyperparams: Mapping[str, Any] | None
    mode: str


class Trial:
    """A task on files of this machine: ``env`` and ``files`` are what its program is given."""

    def __init__(self, program: Path, asked: Asked) -> None:
        """Read what is needed.

        Raises:
            StartError: A file is missing or is not what it should be; the text names it.
        """
        self._mode = asked.mode
        beside = program.parent / _EXPERIMENT
        experiment = ExperimentFile.load(beside) if beside.is_file() else None
        self.taken: list[str] = []
        self.limits = None if experiment is None else experiment.limits
        hyperparams = asked.hyperparams
        if hyperparams is None and experiment is not None:
            hyperparams = experiment.hyperparams
            self.taken.append(f"hyperparams {json.dumps(hyperparams)}")
        self._model = self._read_model(asked.model, experiment, beside)
        dataset = self._read_dataset(asked.data, experiment, beside)
        texts = {
            "model.json": json.dumps(to_json(self._model)),
            "dataset.json": json.dumps(dataset),
            "hyperparams.json": json.dumps(hyperparams or {}),
        }
        self.files = {name: text.encode() for name, text in texts.items()}
        self.files["model.safetensors"] = to_safetensors(self._model)
        self.env = {
            "ROUND_ID": "r-try",
            "PROPLET_ID": PROPLET,
            "MODEL_URI": "fl/models/global_model_v0",
            "HYPERPARAMS": texts["hyperparams.json"],
            "FL_MODE": asked.mode,
        }
        for variable, name in (("MODEL_DATA", "model.json"), ("DATASET_DATA", "dataset.json")):
            if len(self.files[name]) < MAX_ENV_BYTES:
                self.env[variable] = texts[name]

    def fault(self, stdout: bytes, out_files: Mapping[str, bytes]) -> str | None:
        """Why a proplet or the coordinator would refuse what the program gave back; None: they would not."""
        if self._mode != "train":
            return None
        packed = out_files.get(TENSORS_FILE)
        try:
            parse_program_output(stdout, packed, self.env, PROPLET)
            update = (
                from_json(decode_object(stdout)["update"]) if packed is None else from_safetensors(packed)[0]
            )
            check_shapes(update, shapes_of(self._model))
        except TaskError as error:
            return str(error)
        except TensorError as error:
            return f"the update: {error}"
        return None

    def _read_model(self, file: Path | None, experiment: ExperimentFile | None, beside: Path) -> Tensors:
        found = None
        if file is None and experiment is not None:
            found = experiment.first_model(beside.parent)
            self.taken.append("model")
        if file is None and found is None:
            raise StartError(f"give the model to begin with: --model FILE, or tensors in [model] of {beside}")
        try:
            if file is not None and file.suffix == ".safetensors":
                return from_safetensors(read(file))[0]
            return from_json(decode_object(read(file)) if file is not None else found or {})
        except (TensorError, MalformedMessageError) as error:
            raise StartError(f"{file or beside}: model: {error}") from None

    def _read_dataset(
        self, file: Path | None, experiment: ExperimentFile | None, beside: Path
    ) -> dict[str, Any]:
        if file is None and experiment is not None and experiment.data is not None:
            file = beside.parent / experiment.data.files[0]
            self.taken.append(f"data {experiment.data.files[0]}")
        if file is None:
            raise StartError(f"give a device's data: --data FILE, or files in [data] of {beside}")
        try:
            document = json.loads(read(file))
        except ValueError as error:
            raise StartError(f"{file}: not JSON: {error}") from None
        fields = document if isinstance(document, dict) else {"data": document}
        samples = fields.get("data")
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise StartError(f'{file}: not a data set: {{"data": [{{"x": [0.1, 0.2], "y": 1}}, …]}}')
        if not samples:
            raise StartError(f"{file}: there are no samples in it")
        return {**fields, "data": samples, "size": len(samples)}


def read(file: Path) -> bytes:
    """A file's bytes.

    Raises:
        StartError: It cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
