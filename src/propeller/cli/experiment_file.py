"""An experiment file: the fields of an experiment in TOML, and the model and data that it brings."""

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

from propeller.errors import InvalidError, StartError
from propeller.fl.schedules import resolve_hyperparams
from propeller.process.control_characters import escape_line
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.strict import nearest_names
from propeller.sdk import Experiment
from propeller.sdk.initial_model import MODEL_FILES
from propeller.sdk.initial_model import read_model as read_models_file
from propeller.sdk.programs import is_file_name, program_file

_SHORT = {"strategy": "name", "mode": "kind"}
"""Tables that may be written as one text, and the field that this text is."""

_OF_MODEL = ("version", "file")
_OF_DATA = frozenset({"files", "label"})


@dataclass
class ExperimentFile:
    """What a file says.

    Attributes:
        folder: where it is; paths in it are relative to this.
        spec: the experiment, checked; the model only if it is a version.
        tensors: the model to start from, if the file has its tensors.
        model_file: or the file that it is in.
        data_files: data to store: a file or folder for each device in turn, or by the names of devices and of the data set of ``evaluate``.
        data_label: of those that are tables, the column with labels.
        notes: what is written as it was in earlier versions, and how it is written now.
        simulation: the table of a virtual fleet, which is for ``propeller simulate`` alone.
    """

    folder: Path
    spec: ExperimentSpec
    tensors: dict[str, Any] | None = None
    model_file: str | None = None
    data_files: list[str] | dict[str, str] = field(default_factory=list)
    data_label: str | None = None
    notes: list[str] = field(default_factory=list)
    simulation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path, changes: Iterable[str] = ()) -> Self:
        """Read a file.

        Args:
            file: where it is.
            changes: fields that get another value, as ``lr=0.1`` or ``strategy.name=fedadam``.

        Raises:
            StartError: it is missing, is not TOML, or a field is wrong; the text names it.
        """
        try:
            fields = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise StartError(f"{file}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            if file.suffix in {".py", ".wasm"}:
                raise StartError(
                    f"{file}: is a program; give the experiment file whose 'program' it is, as experiment.toml"
                ) from None
            raise StartError(f"{file}: not TOML: {error}") from None
        notes = _read_old_names(fields)
        for change in changes:
            _apply(fields, change)
        try:
            return cls._from_fields(file.parent, fields, notes)
        except InvalidError as error:
            raise StartError(f"{file}: {error}") from None

    @classmethod
    def _from_fields(cls, folder: Path, fields: dict[str, Any], notes: list[str]) -> Self:
        source, tensors = _pop_model(fields)
        files, label = _pop_data_files(fields)
        simulation = fields.pop("simulation", {})
        if not isinstance(simulation, dict):
            raise InvalidError("simulation: must be a table, as [simulation] with clients = 100")
        if "version" in source:
            fields["model"] = {"version": source["version"]}
        spec = ExperimentSpec.decode({"rounds": 1, **fields})
        return cls(folder, spec, tensors or None, source.get("file"), files, label, notes, simulation)

    @property
    def hyperparams(self) -> dict[str, Any]:
        """As they are in the first round."""
        return resolve_hyperparams(self.spec.hyperparams, 1, self.spec.rounds)

    @property
    def split(self) -> dict[str, Any] | None:
        """What is held out of each device's data, if anything."""
        found: dict[str, Any] | None = self.spec.to_json().get("data", {}).get("split")
        return found

    @property
    def evaluates_on_training_data(self) -> bool:
        """Whether devices evaluate, and nothing is held out for it."""
        plan = self.spec.evaluate
        return plan is not None and plan.on == "devices" and self.split is None

    @property
    def limits(self) -> dict[str, int | float] | None:
        """Of each task."""
        return self.spec.limits

    @property
    def program_file(self) -> Path | None:
        """The program, if it is a file and not a reference: its path is from this file's folder."""
        return program_file(self.spec.program, self.folder) if is_file_name(self.spec.program) else None

    def first_model(self) -> dict[str, Any] | None:
        """The model to start from, if this file brings one: arrays, or lists of numbers, by tensor name.

        Raises:
            StartError: its file cannot be read.
        """
        if self.model_file is None:
            return self.tensors
        return read_model(self.folder / self.model_file, self.hyperparams)

    @property
    def first_data_file(self) -> str | None:
        """The file of the first device that has one."""
        if isinstance(self.data_files, list):
            return next(iter(self.data_files), None)
        central = None if self.spec.evaluate is None else self.spec.evaluate.dataset
        return next((file for name, file in self.data_files.items() if name != central), None)

    def datasets(self) -> list[dict[str, Any]] | dict[str, dict[str, Any]]:
        """The data sets in ``data_files``; what of them programs are not given is said on stderr.

        Raises:
            StartError: a file cannot be read, or has no samples.
        """
        if isinstance(self.data_files, list):
            return [self.read_dataset(file) for file in self.data_files]
        return {name: self.read_dataset(file) for name, file in self.data_files.items()}

    def read_dataset(self, file: str) -> dict[str, Any]:
        """One of the data sets in ``data_files``; what of it programs are not given is said on stderr.

        Raises:
            StartError: it cannot be read, or has no samples.
        """
        return read_dataset(self.folder / file, self.data_label, "data.files", "data.label")

    def to_experiment(self) -> Experiment:
        """The experiment with its model and data.

        Raises:
            StartError: a file cannot be read.
        """
        fields = self.spec.to_json()
        split = fields.pop("data", {}).get("split")
        version = fields.pop("model", {}).get("version")
        model = self.first_model()
        return Experiment(
            **fields, split=split, model=version if model is None else model, data=self.datasets() or None
        )


def read_dataset(path: Path, label: str | None, files_field: str, label_field: str) -> dict[str, Any]:
    """A device's data from a file or folder, as a data store takes it; what of it programs are not given is said on stderr.

    Args:
        path: where it is.
        label: of a table, the column with labels.
        files_field: where the person named the file, for errors.
        label_field: and the label.

    Raises:
        StartError: it cannot be read; the text names the file, the sample and the field.
    """
    from propeller.samples.device_data import read_device_data

    try:
        found = read_device_data(path, label)
    except InvalidError as error:
        field, _, text = str(error).partition(": ")
        raise StartError(f"{label_field if field == 'label' else files_field}: {text}") from None
    if found.left_out:
        columns = ", ".join(found.left_out)
        print(
            escape_line(
                f"{files_field}: {path}: programs are not given these columns, which are texts: {columns}"
            ),
            file=sys.stderr,
        )
    return found.document()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        StartError: it is none.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StartError(f"{file}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise StartError(f"{file}: not a JSON object")
    return document


def read_model(file: Path, hyperparams: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model from a file, whose name says its encoding; JSON if it says none. A script makes it with its ``@initial_model``.

    Args:
        file: the file.
        hyperparams: what a script's function is called with.

    Returns:
        Arrays of NumPy, or of JSON numbers and lists of them, by tensor name.

    Raises:
        StartError: it cannot be read, or is none.
    """
    try:
        return read_models_file(file, hyperparams)
    except InvalidError as error:
        raise StartError(str(error)) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _read_old_names(fields: dict[str, Any]) -> list[str]:
    """Give fields that had other names theirs; how each is written now."""
    notes = []
    if "image" in fields and "program" not in fields:
        fields["program"] = fields.pop("image")
        notes.append("image is now program")
    if "participants" in fields and isinstance(fields.get("selection", {}), dict):
        fields["selection"] = {"names": fields.pop("participants"), **fields.get("selection", {})}
        notes.append("participants is now selection.names")
    if fields.get("k_of_n") == 0:
        del fields["k_of_n"]
        notes.append("k_of_n = 0 is now no k_of_n")
    return notes


def _pop_model(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take the model out of the fields: where it comes from, and its tensors."""
    model = fields.pop("model", {})
    if not isinstance(model, dict):
        raise InvalidError("model: must be a table: tensors by name, or file, or version")
    source = {name: model[name] for name in _OF_MODEL if name in model}
    tensors = {name: value for name, value in model.items() if name not in _OF_MODEL}
    if len(source) + bool(tensors) > 1:
        raise InvalidError("model: give tensors, or file, or version; not more than one of them")
    if not isinstance(source.get("file", ""), str):
        raise InvalidError(f"model.file: must be the path of {MODEL_FILES}")
    for name, value in tensors.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise InvalidError(f"model: {name} must be made of finite numbers and lists of them") from None
    return source, tensors


def _pop_data_files(fields: dict[str, Any]) -> tuple[list[str] | dict[str, str], str | None]:
    """Take the files of data out of the fields, and the column with labels of those that are tables."""
    data = fields.get("data")
    if not isinstance(data, dict) or not data.keys() & _OF_DATA:
        return [], None
    fields["data"] = {name: value for name, value in data.items() if name not in _OF_DATA}
    label = data.get("label")
    if label is not None and not isinstance(label, str):
        raise InvalidError("data.label: must be the name of a column, of the tables in data.files")
    if "files" not in data:
        raise InvalidError("data.label: names a column of the tables in data.files: give these, too")
    files = data["files"]
    paths = list(files.values()) if isinstance(files, dict) else files
    if not isinstance(paths, list) or not paths or not all(isinstance(one, str) for one in paths):
        raise InvalidError(
            "data.files: must be a list of paths, one for each device in turn, or a table of paths by the names of devices "
            "and of the data set in evaluate.dataset"
        )
    found: list[str] | dict[str, str] = files
    return found, label


def _apply(fields: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not equals or not all(names):
        raise StartError(f"--set {change}: write FIELD=VALUE, as lr=0.1 or strategy.name=fedadam")
    if len(names) == 1 and names[0] not in ExperimentSpec.model_fields:
        names = ["hyperparams", _known_hyperparam(names[0], fields)]
    table: Any = fields
    for at, name in enumerate(names[:-1]):
        inner = table.get(name)
        if isinstance(inner, str) and at == 0 and name in _SHORT:
            inner = {_SHORT[name]: inner}
        if not isinstance(inner, dict):
            inner = {}
        table[name] = inner
        table = inner
    table[names[-1]] = _read_value(text.strip())


def _known_hyperparam(name: str, fields: Mapping[str, Any]) -> str:
    """A hyperparameter of the file by its bare name: any other name may be a misspelt field."""
    known = fields.get("hyperparams", {})
    if isinstance(known, dict) and name in known:
        return name
    near = nearest_names(name, [*ExperimentSpec.model_fields, *(known if isinstance(known, dict) else ())])
    hint = f"did you mean {near[0]}? " if near else ""
    raise StartError(
        f"--set {name}: neither a field nor a hyperparameter of the file; {hint}"
        f"A new hyperparameter is --set hyperparams.{name}=…"
    )


def _read_value(text: str) -> Any:
    """A value as TOML has it; whatever is none is a text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | list | dict) else text
