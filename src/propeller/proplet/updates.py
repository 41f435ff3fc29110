"""From a program's output to an update or an evaluation at the coordinator: checked, sent over HTTP, else over MQTT."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from propeller.errors import UnavailableError
from propeller.process.http import ServiceClient, ServiceError
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import COORDINATOR, JSON, SAFETENSORS, ServiceClients
from propeller.proplet.large_files import FileBody
from propeller.protocol.evaluations import EVALUATE, check_names, explain_output, read_evaluation
from propeller.protocol.task import encode_json
from propeller.protocol.updates import UpdateHeader, UpdateMessage, read_update_fields
from propeller.protocol.wire import MalformedMessageError, decode_object, decode_trusted
from propeller.wasm.task_inputs import TENSORS_FILE

log = get_logger("updates")

ENDED_STATES = frozenset({"completed", "stopped", "failed"})
"""Of an experiment that has no more rounds."""

_CLOSED_STATES = frozenset({"aggregating", "completed", "failed"})
"""Of a round that takes no more updates."""

ASK_TIMEOUT_S = 5.0
"""The longest wait for what a round says of an update, in seconds: a task is about to start."""

LARGE_TIMEOUT_S = 600.0
"""The longest silence while a large update is sent, in seconds: the coordinator answers when it has all of it on its disk."""

LARGE_RETRY_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Between tries to send a large update: it has no other way, and to train again takes longer."""

PublishUpdate = Callable[[str, bytes], Awaitable[None]]
"""Publishes an update of a round over MQTT."""


@dataclass(frozen=True)
class ProgramOutput:
    """An update or an evaluation as it goes to the coordinator: its header, and the body with its media type and content coding."""

    header: UpdateHeader
    media_type: str
    body: bytes | FileBody
    coding: str | None = None

    @property
    def size(self) -> int:
        """Of the body, in bytes."""
        return self.body.length if isinstance(self.body, FileBody) else len(self.body)


def parse_program_output(
    stdout: bytes, tensors: bytes | Path | None, env: Mapping[str, str], proplet_id: str
) -> ProgramOutput:
    """Read what a program left: one JSON document on standard output, large tensors beside it.

    Args:
        stdout: the program's standard output.
        tensors: its ``/out/update.safetensors``, if it wrote one: the content, or where it is.
        env: the task's environment (``ROUND_ID``, ``MODEL_URI``, ``FL_MODE``).
        proplet_id: this proplet.

    Raises:
        TaskError: naming what is missing or wrong.
    """
    round_id = env.get("ROUND_ID", "")
    try:
        if env.get("FL_MODE") == EVALUATE:
            header = read_evaluation(
                stdout, left_tensors=tensors is not None, round_id=round_id, proplet_id=proplet_id
            )
            fields = read_update_fields(stdout, read=decode_trusted)
        else:
            fields, header = _read_update(stdout, tensors, round_id, proplet_id)
            _check_kind(header, env)
    except MalformedMessageError as error:
        raise TaskError(str(error)) from None
    base_model_added = not header.base_model_uri and bool(env.get("MODEL_URI"))
    if base_model_added:
        header.base_model_uri = fields["base_model_uri"] = env["MODEL_URI"]
    if tensors is not None:
        return ProgramOutput(header, SAFETENSORS, with_metadata(tensors, header))
    return ProgramOutput(header, JSON, encode_json(fields) if base_model_added else stdout)


def _read_update(
    stdout: bytes, tensors: bytes | Path | None, round_id: str, proplet_id: str
) -> tuple[dict[str, Any], UpdateHeader]:
    try:
        fields = read_update_fields(stdout, read=decode_trusted)
        header = (UpdateMessage if tensors is None else UpdateHeader).decode(fields)
    except MalformedMessageError as error:
        raise TaskError(explain_output("update", stdout, error)) from None
    check_names("update", header, round_id, proplet_id)
    return fields, header


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


def with_metadata(tensors: bytes | Path, header: UpdateHeader) -> bytes | FileBody:
    """A safetensors document with the header's fields in its ``__metadata__``.

    The tensors themselves are not looked at, and not read of a file; the coordinator checks them against the model.

    Raises:
        TaskError: the document has no readable header.
    """
    # Here, as it takes 0.2 MB that a proplet without large updates does not need.
    from propeller.tensors.safetensors import PREFIX, header_length, replace_metadata
    from propeller.tensors.shapes import TensorError

    metadata = document_metadata(header)
    try:
        if isinstance(tensors, bytes):
            head, start = replace_metadata(tensors, metadata)
            return head + tensors[start:]
        with tensors.open("rb") as file:
            prefix = file.read(PREFIX)
            head, start = replace_metadata(prefix + file.read(header_length(prefix)), metadata)
        return FileBody(head, tensors, start, len(head) + tensors.stat().st_size - start)
    except TensorError as error:
        raise TaskError(f"/out/{TENSORS_FILE}: {error}") from None


def document_metadata(header: UpdateHeader) -> dict[str, str]:
    """The header's fields as the metadata of a safetensors document: all of them texts, as it demands."""
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
    if header.metrics_left_out:
        metadata["metrics_left_out"] = json.dumps(header.metrics_left_out)
    if header.corrected is not None:
        metadata["corrected"] = "true" if header.corrected else "false"
    return metadata


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

    async def send(self, update: ProgramOutput, env: Mapping[str, str]) -> bool:
        """Send an update, again if need be; over MQTT when the coordinator cannot be reached over HTTP.

        Sending twice is safe: the coordinator counts the same update once.

        Returns:
            Whether the coordinator has accepted it; over MQTT that is not known.

        Raises:
            TaskError: the coordinator refused it, with its reason, or it went neither way.
        """
        async with self._services.connect(COORDINATOR, env) as coordinator:
            if coordinator is None:
                raise TaskError("COORDINATOR_URL is not set on this proplet")
            try:
                await _post(coordinator, update)
            except ServiceError as error:
                if not issubclass(error.kind, UnavailableError):
                    raise TaskError(f"the update was refused: {error}") from error
                if isinstance(update.body, FileBody):
                    raise TaskError(
                        f"the update of {update.size} bytes did not reach the coordinator over HTTP and is too large for MQTT: "
                        f"{error}"
                    ) from error
                log.warning("update not delivered over HTTP, publishing it over MQTT", reason=str(error))
            else:
                log.info("update delivered", num_samples=update.header.num_samples, bytes=update.size)
                return True
        await self._publish(update.header.round_id, update.body)
        return False

    async def update_counts(self, proplet_id: str, round_id: str) -> bool | None:
        """Whether a proplet's update counts in a round; ``None``: the coordinator does not tell, or it may still come in."""
        async with self._services.connect(COORDINATOR, {}) as coordinator:
            if coordinator is None:
                return None
            try:
                path = f"/rounds/{quote(round_id, safe='')}"
                answer = await coordinator.request("GET", path, timeout=ASK_TIMEOUT_S, retry=False)
                told = decode_object(answer.content)
                if any(one["proplet_id"] == proplet_id for one in told["received"]):
                    return True
                return False if told["state"] in _CLOSED_STATES else None
            except (ServiceError, MalformedMessageError, KeyError, TypeError) as error:
                log.debug("the coordinator does not tell of a round", round_id=round_id, reason=str(error))
                return None

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


async def _post(coordinator: ServiceClient, update: ProgramOutput) -> None:
    headers = {"Content-Type": update.media_type}
    if update.coding is not None:
        headers["Content-Encoding"] = update.coding
    if isinstance(update.body, bytes):
        await coordinator.request("POST", "/update", content=update.body, headers=headers)
        return
    headers["Content-Length"] = str(update.size)
    body = update.body

    async def send() -> None:
        await coordinator.request(
            "POST", "/update", content=body.pieces(), headers=headers, timeout=LARGE_TIMEOUT_S, retry=False
        )

    await retry(
        send,
        delays=LARGE_RETRY_DELAYS_S,
        on=lambda error: isinstance(error, ServiceError) and issubclass(error.kind, UnavailableError),
        failed=lambda error, _delay_s: log.warning("update is sent again", reason=str(error)),
    )
