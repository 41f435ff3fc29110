"""From a program's output to an update or an evaluation at the coordinator: checked, sent over HTTP, else over MQTT."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from propeller.errors import UnavailableError
from propeller.process.http import ServiceError
from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import COORDINATOR, JSON, SAFETENSORS, ServiceClients
from propeller.protocol.rounds import UpdateHeader, UpdateMessage, read_update_fields
from propeller.protocol.task import encode_json
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("updates")

ENDED_STATES = frozenset({"completed", "stopped", "failed"})
"""Of an experiment that has no more rounds."""

TENSORS_FILE = "update.safetensors"

EVALUATE = "evaluate"
"""The value of ``FL_MODE`` in a task that gives back metrics and no update."""

_MAX_QUOTED_BYTES = 200

_TRAINED_INSTEAD = (
    "update: the task only evaluates (FL_MODE is evaluate), and the program gave back an update, as if it had been asked to "
    "train: have it read FL_MODE and give back num_samples and metrics alone, or take evaluate out of the experiment"
)

PublishUpdate = Callable[[str, bytes], Awaitable[None]]
"""Publishes an update of a round over MQTT."""


@dataclass(frozen=True)
class ProgramOutput:
    """An update or an evaluation as it goes to the coordinator: its header, and the body with its media type."""

    header: UpdateHeader
    media_type: str
    body: bytes


def parse_program_output(
    stdout: bytes, tensors: bytes | None, env: Mapping[str, str], proplet_id: str
) -> ProgramOutput:
    """Read what a program left: one JSON document on standard output, large tensors beside it.

    Args:
        stdout: the program's standard output.
        tensors: its ``/out/update.safetensors``, if it wrote one.
        env: the task's environment (``ROUND_ID``, ``MODEL_URI``, ``FL_MODE``).
        proplet_id: this proplet.

    Raises:
        TaskError: naming what is missing or wrong.
    """
    evaluates = env.get("FL_MODE") == EVALUATE
    expected_kind = "evaluation" if evaluates else "update"
    try:
        fields = read_update_fields(stdout)
        if evaluates and ("update" in fields or tensors is not None):
            raise TaskError(_TRAINED_INSTEAD)
        header = (UpdateMessage if tensors is None and not evaluates else UpdateHeader).decode(fields)
    except MalformedMessageError as error:
        quoted = stdout[:_MAX_QUOTED_BYTES].decode(errors="replace")
        raise TaskError(
            f"the program's standard output is not an {expected_kind}: {error}; it begins {quoted!r}"
        ) from None
    if evaluates and not header.metrics:
        raise TaskError("metrics: an evaluation has one or more; the program's document has none")
    for name, found, expected in (
        ("round_id", header.round_id, env.get("ROUND_ID")),
        ("proplet_id", header.proplet_id, proplet_id),
    ):
        if found != expected:
            raise TaskError(
                f"the program's {expected_kind} names the {name} {found!r}, the task's is {expected!r}"
            )
    if not evaluates:
        _check_kind(header, env)
    base_model_added = not header.base_model_uri and bool(env.get("MODEL_URI"))
    if base_model_added:
        header.base_model_uri = fields["base_model_uri"] = env["MODEL_URI"]
    if tensors is not None:
        return ProgramOutput(header, SAFETENSORS, with_metadata(tensors, header))
    return ProgramOutput(header, JSON, encode_json(fields) if base_model_added else stdout)


def _check_kind(header: UpdateHeader, env: Mapping[str, str]) -> None:
    """See that an update is what the experiment asks devices for.

    Raises:
        TaskError: it is of the other kind.
    """
    if not env.get("FL_UPDATE"):
        return
    try:
        wanted = decode_object(env["FL_UPDATE"]).get("kind", header.kind)
    except MalformedMessageError as error:
        raise TaskError(f"FL_UPDATE: {error}") from None
    if header.kind != wanted:
        raise TaskError(
            f"kind: the experiment asks for updates of the kind {wanted!r} (FL_UPDATE), the program sent {header.kind!r}: have it "
            "send that, or leave update.kind out of the experiment"
        )


def with_metadata(tensors: bytes, header: UpdateHeader) -> bytes:
    """A safetensors document with the header's fields in its ``__metadata__`` (all of them texts, as it demands).

    The tensors themselves are not looked at; the coordinator checks them against the model.

    Raises:
        TaskError: the document has no readable header.
    """
    # Here, as it takes 0.2 MB that a proplet without large updates does not need.
    from propeller.tensors.safetensors import replace_metadata
    from propeller.tensors.shapes import TensorError

    metadata = {
        "round_id": header.round_id,
        "proplet_id": header.proplet_id,
        "base_model_uri": header.base_model_uri,
        "num_samples": str(header.num_samples),
        "metrics": json.dumps(header.metrics, allow_nan=False),
    }
    if header.kind != "weights":
        metadata["kind"] = header.kind
    if header.steps is not None:
        metadata["steps"] = str(header.steps)
    try:
        return replace_metadata(tensors, metadata)
    except TensorError as error:
        raise TaskError(f"/out/{TENSORS_FILE}: {error}") from None


class UpdateSender:
    """Sends updates to the coordinator, and asks it whether experiments are over."""

    def __init__(self, services: ServiceClients, publish: PublishUpdate) -> None:
        """``publish`` is the way that is left when the coordinator cannot be reached over HTTP."""
        self._services, self._publish = services, publish

    def check_destination(self, env: Mapping[str, str]) -> None:
        """See that an update could be sent at all, before the program runs.

        Raises:
            TaskError: nobody says where the coordinator is.
        """
        if self._services.url(COORDINATOR, env) is None:
            raise TaskError("COORDINATOR_URL is not set on this proplet: there is nowhere to send the update")

    async def send(self, update: ProgramOutput, env: Mapping[str, str]) -> None:
        """Send an update, again if need be; over MQTT when the coordinator cannot be reached over HTTP.

        Sending twice is safe: the coordinator counts the same update once.

        Raises:
            TaskError: the coordinator refused it, with its reason, or it went neither way.
        """
        async with self._services.connect(COORDINATOR, env) as coordinator:
            if coordinator is None:
                raise TaskError("COORDINATOR_URL is not set on this proplet")
            try:
                await coordinator.request(
                    "POST", "/update", content=update.body, headers={"Content-Type": update.media_type}
                )
            except ServiceError as error:
                if not issubclass(error.kind, UnavailableError):
                    raise TaskError(f"the update was refused: {error}") from error
                log.warning("update not delivered over HTTP, publishing it over MQTT", reason=str(error))
            else:
                log.info("update delivered", num_samples=update.header.num_samples, bytes=len(update.body))
                return
        await self._publish(update.header.round_id, update.body)

    async def experiment_has_ended(self, experiment_id: str) -> bool:
        """Whether the coordinator says that an experiment is over; one that it does not tell of may be going on."""
        async with self._services.connect(COORDINATOR, {}) as coordinator:
            if coordinator is None:
                return False
            try:
                response = await coordinator.request("GET", f"/experiments/{quote(experiment_id, safe='')}")
                state = decode_object(response.content).get("state")
            except (ServiceError, MalformedMessageError) as error:
                log.debug(
                    "the coordinator does not tell of an experiment",
                    experiment_id=experiment_id,
                    reason=str(error),
                )
                return False
        return state in ENDED_STATES
