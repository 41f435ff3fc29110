"""What a client's program left, checked as a proplet checks it and then as a coordinator does: it counts in a simulation if and only if it counts on a fleet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from propeller.coordinator.updates import read_update, received_message, to_document
from propeller.errors import PropellerError
from propeller.fl.tensors import TensorSpec
from propeller.proplet.errors import TaskError
from propeller.proplet.updates import parse_program_output
from propeller.protocol.updates import UpdateHeader, UpdateMessage
from propeller.simulation.compression import ClientCompressor
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask
from propeller.wasm import folder_contents
from propeller.wasm.program_run import MIB


class ClientReports:
    """Makes reports of what programs leave."""

    def __init__(self, states: Path, scratch: Path) -> None:
        """``states`` takes what clients keep; ``scratch`` is made, for compression, and nobody else writes to it."""
        self._states = states
        self._compressor = ClientCompressor(scratch)
        self._round = RoundTask(-1, {}, evaluates=False, model="", strategy=None, split=None, update={})
        self._specs: dict[str, TensorSpec] = {}

    def begin_round(self, task: RoundTask) -> None:
        """Take over what the clients of a round have in common."""
        self._round = task
        self._specs = {name: TensorSpec(dtype, tuple(shape)) for name, (dtype, shape) in task.update.items()}

    def read(
        self, task: ClientTask, stdout: bytes, tensors: bytes | None, env: Mapping[str, str]
    ) -> tuple[ClientReport, bytes]:
        """The report of a program that ended well, with its update.

        Args:
            task: the client's.
            stdout: the program's standard output.
            tensors: its ``/out/update.safetensors``, if it wrote one.
            env: of the task.

        Raises:
            PropellerError: what it left does not count.
        """
        output = parse_program_output(stdout, tensors, env, task.proplet_id)
        if self._round.evaluates:
            return ClientReport(task.id, header=_fields_of(output.header)), b""
        residual = None if task.residual is None else Path(task.residual)
        sent, left = self._compressor.compress(output, env, Path(self._round.model), residual)
        if not isinstance(sent.body, bytes):
            raise TaskError("the update is in a file, and was read into memory")
        if sent is output and isinstance(output.header, UpdateMessage):
            update = received_message(output.header, output.size)
        else:
            update = read_update(sent.media_type, sent.body, coding=sent.coding, max_bytes=output.size + MIB)
        content = to_document(update, self._specs).content
        if not isinstance(content, bytes) or update.transfer is None:
            raise TaskError("the update's document is in a file, and is read into memory")
        if left is not None:
            kept = self._states / f"{task.client}-{task.id}.residual"
            folder_contents.copy_file(left, kept)
            left.unlink()
            left = kept
        report = ClientReport(
            task.id,
            header=_fields_of(update.header),  # compression makes a difference of weights
            bytes=len(content),
            transfer=vars(update.transfer),
            residual=None if left is None else str(left),
        )
        return report, content


def fault_report(task: ClientTask, fault: Exception) -> ClientReport:
    """The report of a task that raised."""
    if isinstance(fault, PropellerError):  # what the program did
        return ClientReport(task.id, error=str(fault))
    return ClientReport(task.id, error=f"a fault of the simulation: {type(fault).__name__}: {fault}")


def _fields_of(header: UpdateHeader) -> dict[str, Any]:
    return header.model_dump(mode="json", exclude={"update"}, exclude_none=True)
