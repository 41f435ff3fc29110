"""Rounds on the wire: experiments, starts, participants, failures and the notice of a completed round."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from propeller.protocol.bounds import UpdateBounds
from propeller.protocol.finite import JsonObject
from propeller.protocol.ids import Id
from propeller.protocol.models import SentModel
from propeller.protocol.requirements import Requirements
from propeller.protocol.selection import RoundKind, SelectionPolicy
from propeller.protocol.task import Stage, TaskLimits, Text
from propeller.protocol.wire import (
    MAX_INTEGER,
    Message,
    Time,
    now,
    reject_boolean,
    require_finite,
    require_printable,
    require_unique,
)

MAX_ROUNDS = 100_000
"""The most rounds of an experiment."""

MAX_REASON_CHARACTERS = 2000
"""The rest of a failure's reason is cut off."""

MAX_WAIT_S = 60.0
"""The longest that an answer waits for the end of a round (``wait_s``)."""

DEFAULT_MODEL = "fl/models/global_model_v0"
DEFAULT_QUORUM = 3
DEFAULT_TIMEOUT_S = 60.0


def model_uri(version: int) -> str:
    """The reference of a model version: ``fl/models/global_model_v{n}``."""
    return f"fl/models/global_model_v{version}"


def model_version(reference: str) -> int:
    """The version in a model reference: its last run of digits, 0 if there is none (as S reads it)."""
    digits = ""
    for character in reversed(reference):
        if character.isascii() and character.isdigit():
            digits = character + digits
        elif digits:
            break
    return int(digits) if digits else 0


def _exact_version(reference: str) -> str:
    if model_version(reference) > MAX_INTEGER:
        raise ValueError(f"its version is more than {MAX_INTEGER}")
    return reference


def _truncated(reason: str) -> str:
    return reason[:MAX_REASON_CHARACTERS].replace("\0", "\ufffd")  # PostgreSQL cannot hold NUL in a text


def _check_quorum(k_of_n: int, participants: int) -> None:
    if k_of_n > participants:
        raise ValueError(f"k_of_n ({k_of_n}) is more than the {participants} participants")


ModelRef = Annotated[
    str, Field(max_length=512), AfterValidator(require_printable), AfterValidator(_exact_version)
]
"""The reference of a model, as ``fl/models/global_model_v3``."""

UpdateKind = Literal["weights", "delta"]
"""What the tensors of an update are: the model after local training, or its difference to the base model."""

_Number = BeforeValidator(reject_boolean)
_Count = Annotated[int, Field(ge=0), _Number]
_Timeout = Annotated[float, Field(ge=0, le=7 * 86400), AfterValidator(require_finite), _Number]
_Label = Annotated[Text, Field(max_length=128), AfterValidator(require_printable)]
_Image = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(require_printable)]

DeviceNames = Annotated[
    dict[Id, Annotated[str, Field(max_length=128), AfterValidator(require_printable)]],
    Field(max_length=10_000),
]
"""The names of devices by their ids."""

Participants = Annotated[list[Id], Field(min_length=1, max_length=10_000), AfterValidator(require_unique)]


class UpdateSource(Message):
    """Where an update comes from that an asynchronous experiment merges: the round of a wave, and its base model."""

    round_id: Id
    base_version: _Count
    staleness: _Count
    """How many versions were made since that base model."""


class RoundStart(Message):
    """Starts a round: topic ``fl/rounds/start``. S sends no ``k_of_n`` and no ``timeout_s``.

    A round of an experiment has ``selection`` in the place of ``participants``: the manager chooses, and asks the
    coordinator who takes part (``RoundParticipants``) before it starts a task. The fields after ``limits`` are of such
    rounds alone.
    """

    round_id: Id
    model_uri: Annotated[ModelRef, Field(min_length=1)]
    task_wasm_image: _Image
    selection: SelectionPolicy | None = None
    participants: Annotated[Participants | None, Field(validate_default=True)] = None
    hyperparams: JsonObject | None = None
    k_of_n: _Count | None = None
    timeout_s: _Timeout | None = None
    experiment_id: _Label = ""
    limits: TaskLimits = None
    mode: RoundKind = "train"
    number: Annotated[int, Field(ge=1)] = 1
    """Of the round in its experiment."""
    attempt: Annotated[int, Field(ge=1)] = 1
    min_updates: Annotated[int, Field(ge=1), _Number] = 1
    strategy: dict[str, Any] | None = None
    """What programs are told of it: its name and the values that it has for devices."""
    split: dict[str, Any] | None = None
    """Of each device's data, into what is trained on and what is held out."""
    update: dict[str, Any] | None = None
    """What devices send, where it is not the weights as they are: ``{"kind": "delta"}``."""
    merged: list[UpdateSource] | None = None
    """Of a round whose updates are there already, which nobody is told to start: where each participant's is from."""
    seed: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    """Of the experiment: what programs draw follows from it, the round's number and the participant's slot."""
    names: DeviceNames | None = None
    """Of its participants, by their ids, once they are chosen: on record alone, nobody is told to start it with them."""
    bounds: UpdateBounds | None = None
    """Of updates, where they are not the default ones: on record alone, the coordinator checks them."""

    @field_validator("participants")
    @classmethod
    def _or_selection(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if "selection" in info.data and (value is None) == (info.data["selection"] is None):
            raise ValueError("must be named, or selection must say how they are chosen; one of both")
        return value

    @model_validator(mode="after")
    def _quorum(self) -> Self:
        if self.participants is not None:
            _check_quorum(self.k_of_n or 0, len(self.participants))
        return self

    @property
    def model_ref(self) -> str:
        """The base model, as an experiment names it."""
        return self.model_uri

    def encode(self) -> bytes:
        """Compact JSON; of a round with participants the fields that S knows, and no others."""
        exclude = _SELECTION_FIELDS if self.selection is None else {"bounds"}
        return self.model_dump_json(exclude_none=True, exclude=exclude).encode()

    def given(self) -> dict[str, Any]:
        """The fields that it sets, by their names in an experiment."""
        fields = {
            "experiment_id": self.experiment_id or None,
            "round_id": self.round_id,
            "model_ref": self.model_uri,
            "participants": self.participants,
            "hyperparams": self.hyperparams,
            "k_of_n": self.k_of_n,
            "timeout_s": self.timeout_s,
            "task_wasm_image": self.task_wasm_image,
            "limits": self.limits,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def to_experiment(self) -> "Experiment":
        """The experiment that it starts, with defaults for the fields that it leaves out."""
        return Experiment.decode(self.given())

    def with_participants(self, participants: list[str]) -> "Experiment":
        """The round with those that take part in it: what the manager remembers of a round that it started."""
        count = len(participants)
        fields = {**self.given(), "participants": participants, "k_of_n": min(self.k_of_n or count, count)}
        return Experiment.decode(fields)


_SELECTION_FIELDS = {
    "selection",
    "mode",
    "number",
    "attempt",
    "min_updates",
    "strategy",
    "split",
    "update",
    "merged",
    "seed",
    "names",
    "bounds",
}


class Experiment(Message):
    """``POST /fl/experiments`` of the manager and ``POST /experiments`` of the coordinator.

    ``k_of_n`` 0 or absent means 3, or all participants if they are fewer; ``timeout_s`` 0 or absent means 60 s.
    """

    experiment_id: _Label = ""
    round_id: Id
    model_ref: ModelRef = DEFAULT_MODEL
    participants: Participants
    hyperparams: JsonObject | None = None
    k_of_n: _Count = 0
    timeout_s: _Timeout = 0.0
    min_updates: Annotated[int, Field(ge=1), _Number] = 1
    task_wasm_image: Annotated[Text, Field(max_length=512), AfterValidator(require_printable)] = ""
    limits: TaskLimits = None
    """Of each participant's task."""
    update: UpdateBounds | None = None
    """How large an update's numbers may be; ``None``: as by default."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            fields = {
                key: value for key, value in fields.items() if value is not None or key == "hyperparams"
            }
            if fields.get("model_ref") == "":
                fields["model_ref"] = DEFAULT_MODEL
        return fields

    @model_validator(mode="after")
    def _quorum(self) -> Self:
        count = len(self.participants)
        _check_quorum(self.k_of_n, count)
        if self.k_of_n == 0:
            self.k_of_n = min(DEFAULT_QUORUM, count)
        if self.timeout_s == 0:
            self.timeout_s = DEFAULT_TIMEOUT_S
        if self.min_updates > self.k_of_n:
            raise ValueError(f"min_updates ({self.min_updates}) is more than k_of_n ({self.k_of_n})")
        return self

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON; whole seconds are integers, as coordinators in Go decode nothing else."""
        fields = self.model_dump(mode="json")
        if self.timeout_s == int(self.timeout_s):
            fields["timeout_s"] = int(self.timeout_s)
        for name in ("limits", "update"):
            if fields[name] is None:
                del fields[name]
        return fields

    def to_round_start(self) -> RoundStart:
        """The message that starts it; ``min_updates`` has no field there.

        Raises:
            ValidationError: it names no program or no model.
        """
        return RoundStart(
            experiment_id=self.experiment_id,
            round_id=self.round_id,
            model_uri=self.model_ref,
            participants=self.participants,
            hyperparams=self.hyperparams,
            k_of_n=self.k_of_n,
            timeout_s=self.timeout_s,
            task_wasm_image=self.task_wasm_image,
            limits=self.limits,
        )


SKIPPED = "skipped: "
"""How the reason of a failure begins of a participant that was not even asked: it was not alive when the round started."""


class ParticipantFailure(Message):
    """``POST /rounds/{round_id}/failures`` of the coordinator: why no update is to be expected of a participant."""

    proplet_id: Id
    reason: Annotated[str, Field(min_length=1), AfterValidator(_truncated)]


class ParticipantStage(Message):
    """``POST /rounds/{round_id}/stages`` of the coordinator: what a participant does, if that takes long."""

    proplet_id: Id
    stage: Stage


class ChosenParticipants(Message):
    """``POST /rounds/{round_id}/participants`` of the coordinator: whom the manager chose, or why it could choose nobody.

    Attributes:
        participants: in the order of their slots.
        surplus: how many of them are beyond those that are needed.
        failure: why there will be none: the round fails.
        final: whether no other try can go better: the experiment fails too.
        waiting: what the choice waits for: the round goes on to wait for participants.
        program: the reference by digest of what ``task_wasm_image`` names, if that could be found out.
        names: of the participants, by their ids: the coordinator knows no devices, and tells of them as people call them.
        functions: those that the program's artifact says it has, if it says so.
        requirements: what the artifact of a native program says it requires; ``None``: it is none, or that is not known.
        left_out: which devices were left out, as they lack what the program requires, if there are such.
    """

    participants: Annotated[list[Id], Field(max_length=10_000), AfterValidator(require_unique)] = Field(
        default_factory=list
    )
    surplus: _Count = 0
    failure: Annotated[str, AfterValidator(_truncated)] | None = None
    waiting: Annotated[str, AfterValidator(_truncated)] | None = None
    program: _Image | None = None
    names: DeviceNames | None = None
    functions: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=100)] | None = None
    requirements: Requirements | None = None
    final: bool | None = None
    left_out: Annotated[str, AfterValidator(_truncated)] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if sum(map(bool, (self.participants, self.failure, self.waiting))) != 1:
            raise ValueError("one of participants, failure and waiting must be given")
        return self


class RoundParticipants(Message):
    """The coordinator's answer to ``ChosenParticipants``: who takes part, in the order of their slots.

    The first answer counts, so it may name others than the manager chose now. Nobody is named of a round that is over.
    """

    participants: list[Id]
    state: str
    k_of_n: _Count = 0
    task_wasm_image: _Image
    model_digest: str | None = None
    """Of the base model: participants read it by this."""
    model: SentModel | None = None
    """The base model itself, if it is small."""


class RoundStop(Message):
    """A round takes no more updates, and the tasks of these participants need not go on: topic ``fl/rounds/stop``."""

    round_id: Id
    participants: list[Id]
    reason: Annotated[str, Field(min_length=1), AfterValidator(_truncated)]


class RoundNext(Message):
    """A round completed and its model is stored: topic ``fl/rounds/next``."""

    round_id: str
    new_model_version: int
    model_uri: str
    status: str = "complete"
    next_round_available: bool = True
    timestamp: Time = Field(default_factory=now)
