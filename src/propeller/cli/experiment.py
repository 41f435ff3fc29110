"""An experiment file: what ``propeller run`` reads."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from propeller.process.run import StartError
from propeller.protocol.task import TaskLimits
from propeller.protocol.wire import explain_validation_error


def _sendable(values: dict[str, Any]) -> dict[str, Any]:
    """What TOML has and JSON has not is refused: dates, times, nan and inf."""
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} must be made of text, finite numbers, true, false, lists and tables"
            ) from None
    return values


class ModelSource(BaseModel):
    """Where training starts: a version that is there, a file, or tensors by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: int | None = Field(None, ge=0)
    file: str | None = None


def _with_sendable_tensors(source: ModelSource) -> ModelSource:
    _sendable(source.model_extra or {})
    return source


class DataSource(BaseModel):
    """Local data: a file for each participant, in turn."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: list[str] = Field(min_length=1)


class ExperimentFile(BaseModel):
    """The fields of an experiment file; one that is not known is refused by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(min_length=1)
    rounds: int = Field(1, ge=1, le=100_000)
    timeout_s: float = Field(60.0, gt=0)
    k_of_n: int = Field(0, ge=0)
    participants: list[str] | None = Field(None, min_length=1)
    hyperparams: Annotated[dict[str, Any], AfterValidator(_sendable)] = Field(default_factory=dict)
    limits: TaskLimits = None
    model: Annotated[ModelSource, AfterValidator(_with_sendable_tensors)] = Field(default_factory=ModelSource)
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
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{file}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise StartError(f"{file}: not a JSON object")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
