"""``propeller run``: an experiment file, and its rounds, one after another, on a running stack."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.markup import escape

from propeller.process.run import StartError
from propeller.protocol.task import TaskLimits
from propeller.protocol.wire import explain_validation_error
from propeller.sdk import Propeller, RoundResult


def _check_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what TOML has and JSON does not: dates, times, nan and inf."""
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} must be made of text, finite numbers, true, false, lists and tables"
            ) from None
    return values


class ModelSource(BaseModel):
    """Where training starts: an existing version, a file, or tensors by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: int | None = Field(None, ge=0)
    file: str | None = None


def _check_tensors(source: ModelSource) -> ModelSource:
    _check_json_values(source.model_extra or {})
    return source


class DataSource(BaseModel):
    """Local data: a file for each participant, in turn."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: list[str] = Field(min_length=1)


class ExperimentFile(BaseModel):
    """The fields of an experiment file; an unknown one is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(min_length=1)
    rounds: int = Field(1, ge=1, le=100_000)
    timeout_s: float = Field(60.0, gt=0)
    k_of_n: int = Field(0, ge=0)
    participants: list[str] | None = Field(None, min_length=1)
    hyperparams: Annotated[dict[str, Any], AfterValidator(_check_json_values)] = Field(default_factory=dict)
    limits: TaskLimits = None
    model: Annotated[ModelSource, AfterValidator(_check_tensors)] = Field(default_factory=ModelSource)
    data: DataSource | None = None

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a file.

        Raises:
            StartError: it is missing, is not TOML, or a field is wrong; the text names it.
        """
        try:
            return cls.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise StartError(f"{file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StartError(f"{file}: not TOML: {error}") from None
        except ValidationError as error:
            raise StartError(f"{file}: {explain_validation_error(error)}") from None

    def first_model(self, folder: Path) -> dict[str, Any] | None:
        """The model to start from, if this file brings one.

        Raises:
            StartError: its file cannot be read.
        """
        tensors = self.model.model_extra or {}
        if sum([self.model.version is not None, self.model.file is not None, bool(tensors)]) > 1:
            raise StartError("model: give tensors, or file, or version; not more than one of them")
        if self.model.file is not None:
            return read_json(folder / self.model.file)
        return tensors or None

    def datasets(self, folder: Path) -> list[dict[str, Any]]:
        """The local data, a document a participant.

        Raises:
            StartError: a file cannot be read.
        """
        return [] if self.data is None else [read_json(folder / name) for name in self.data.files]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        StartError: it is none.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{file}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise StartError(f"{file}: not a JSON object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def run_experiment(file: Path, state: Path, *, image: str | None, rounds: int | None) -> None:
    """Store local data and the first model, run every round, and show what each gave.

    Args:
        file: the experiment.
        state: of the stack.
        image: instead of the file's.
        rounds: instead of the file's.

    Raises:
        PropellerError: a field is wrong, or a round failed; the text has the reason.
    """
    experiment = ExperimentFile.load(file)
    if rounds is not None:
        experiment.rounds = rounds
    if image is not None:
        experiment.image = image
    console = Console(highlight=False)
    with Propeller.from_state(state) as fl:
        _run_rounds(fl, experiment, file.parent, console)


def _run_rounds(fl: Propeller, experiment: ExperimentFile, folder: Path, console: Console) -> None:
    participants = experiment.participants or sorted(p["id"] for p in fl.proplets(alive=True))
    if not participants:
        raise StartError("no proplet is alive: see `propeller status`")
    datasets, model = experiment.datasets(folder), experiment.first_model(folder)
    if datasets and len(datasets) != len(participants):
        raise StartError(
            f"data.files has {len(datasets)} files for {len(participants)} participants; "
            "give one for each, or name the participants"
        )
    for proplet, dataset in zip(participants, datasets, strict=False):
        fl.put_dataset(proplet, dataset)
    version = experiment.model.version if model is None else fl.put_model(model)
    base = version if version is not None else fl.latest()
    rounds, proplets = _count(experiment.rounds, "round"), _count(len(participants), "proplet")
    console.print(f"{escape(experiment.image)}: {rounds} on {proplets}, from model v{base}", soft_wrap=True)
    for number in range(1, experiment.rounds + 1):
        first = " (the program is fetched and compiled first)" if number == 1 else ""
        with console.status(f"round {number}: no updates yet{first} …") as waiting:
            result = fl.run_round(
                experiment.image,
                participants=participants,
                hyperparams=experiment.hyperparams,
                limits=experiment.limits,
                base_version=base,
                k_of_n=experiment.k_of_n,
                timeout_s=experiment.timeout_s,
                on_update=lambda got, wanted: waiting.update(f"round {number}: {got} of {wanted} updates …"),  # noqa: B023
            )
        base = result.model_version
        console.print(_line(number, result, len(participants)), soft_wrap=True)
    console.print(f"Model v{base} is at {fl.url('model_registry')}/models/{base}", soft_wrap=True)


def _line(number: int, result: RoundResult, participants: int) -> str:
    names: dict[str, Any] = dict.fromkeys(name for update in result.updates for name in update["metrics"])
    means = "  ".join(f"{name} {mean:.4f}" for name in names if (mean := result.mean(name)) is not None)
    return (
        f"  round {number:>2}  updates {len(result.updates)}/{participants}  {escape(means)}  "
        f"[dim]v{result.model_version}, {_duration(result.seconds)}, {result.round_id}[/]"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
