"""Updates compressed as the experiment asks for it (``FL_UPDATE``), and what was left out kept for the next one.

What error feedback keeps lies among the device states, under a name that no program has, and by the same rules: a version for each of
the last two rounds, which appears once the coordinator has the update that goes with it. No program sees it.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propeller.errors import PropellerError
from propeller.process.logs import get_logger
from propeller.proplet.device_states import DeviceStates, TaskState, round_number
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import SAFETENSORS
from propeller.proplet.large_files import FileBody
from propeller.proplet.update_files import ENCODED, MODEL, RESIDUAL, UPDATE, UPDATE_JSON
from propeller.proplet.updates import ProgramOutput, document_metadata
from propeller.protocol.evaluations import EVALUATE
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.wire import MalformedMessageError, decode_object, read_count
from propeller.wasm.host_calls import HostAnswer, HostCall
from propeller.wasm.program_run import ProgramRun

if TYPE_CHECKING:
    from propeller.protocol.compression import Compression

log = get_logger("compression")

ZSTD = "zstd"
"""The content coding (RFC 8878, section 7.2)."""

_MODULE = "propeller.proplet.update_encoding"
_OWNER = "\0residual"
"""In the place of a program among the device states: no reference of one has a NUL."""

CallFunction = Callable[[HostCall], AbstractAsyncContextManager[HostAnswer]]
"""Calls a function in a process of its own; ``Sandbox.call``."""


class UpdateCompressor:
    """Compresses updates, each in a process of its own."""

    def __init__(self, call: CallFunction, states: DeviceStates) -> None:
        """``states`` keep what error feedback needs."""
        self._call, self._states = call, states

    @contextlib.asynccontextmanager
    async def compressed(self, update: ProgramOutput, run: ProgramRun) -> AsyncIterator[ProgramOutput]:
        """The update as it is to be sent, for the length of the block; what it left out is kept if the block succeeds.

        Raises:
            TaskError: the experiment asks for what cannot be done here, or the update cannot be compressed.
        """
        asked = asked_compression(run.env)
        if asked is None or run.env.get("FL_MODE") == EVALUATE:
            yield update
            return
        if asked.is_lossy and MODEL not in run.files:
            log.warning("update not compressed: the model registry has no safetensors of its base model")
            yield update
            return
        if not asked.error_feedback:
            yield await self._encode(update, run, asked, None)
            return
        experiment_id = run.env.get("EXPERIMENT_ID", "")
        await self._states.wait_settled(experiment_id, _OWNER)
        residual = self._states.open(experiment_id, _OWNER, round_number(run.env), changes=True)
        try:
            sent = await self._encode(update, run, asked, residual)
            async with self._states.settling(residual):
                yield sent
                await self._states.commit(residual)
        finally:
            await self._states.discard(residual)

    async def _encode(
        self, update: ProgramOutput, run: ProgramRun, asked: "Compression", residual: TaskState | None
    ) -> ProgramOutput:
        files: dict[str, bytes | Path] = {
            UPDATE if update.media_type == SAFETENSORS else UPDATE_JSON: update.body.file
            if isinstance(update.body, FileBody)
            else update.body
        }
        if asked.is_lossy:
            files[MODEL] = run.files[MODEL]
            if residual is not None and residual.source is not None:
                files[RESIDUAL] = residual.source / RESIDUAL
        call = HostCall(_MODULE, "encode", encoding_argument(asked, update, run.env), files, run.limits)
        try:
            async with self._call(call) as answer:
                told = json.loads(answer.value)
                body = await asyncio.to_thread(_take_body, answer.out / ENCODED, run.large_files)
                if residual is not None:
                    await asyncio.to_thread(self._take_residual, answer.out / RESIDUAL, residual)
        except TaskError:
            raise
        except PropellerError as error:
            raise TaskError(f"the update cannot be compressed (update.compression): {error}") from error
        except OSError as error:
            raise TaskError(f"the update cannot be compressed: {error.strerror}") from error
        if lost := told.get("residual_lost"):
            log.warning("what earlier updates left out is lost", reason=lost)
        sent = encoded_output(asked, update, body)
        log.info(
            "update compressed",
            compression=str(asked),
            bytes=sent.size,
            uncompressed=update.size,
            error=told.get("error"),
        )
        return sent

    def _take_residual(self, file: Path, residual: TaskState) -> None:
        """Move what the process has left to where it is kept from.

        Raises:
            TaskError: there is no room for two of it.
        """
        if residual.target is None or not file.exists():
            return
        size = file.stat().st_size
        if 2 * size > self._states.max_bytes:
            raise TaskError(
                f"update.compression.error_feedback: two times {size} bytes would be kept for the next updates, over the limit of "
                f"{self._states.max_bytes} bytes (PROPLET_STATE_BYTES): raise it, or leave error_feedback out"
            )
        residual.target.mkdir(mode=0o700)
        file.rename(residual.target / RESIDUAL)


def _take_body(file: Path, large_files: Path | None) -> bytes | FileBody:
    """What the process has written, in memory or, if it is large, in a file among the task's."""
    size = file.stat().st_size
    if size <= LARGE_BYTES or large_files is None:
        return file.read_bytes()
    large_files.mkdir(mode=0o700, exist_ok=True)
    moved = file.rename(large_files / ENCODED)
    return FileBody(b"", moved, 0, size)


def asked_compression(env: Mapping[str, str]) -> "Compression | None":
    """The compression that a task is asked for, if it is.

    Raises:
        TaskError: it is none that is known here.
    """
    if not env.get("FL_UPDATE"):
        return None
    try:
        fields = decode_object(env["FL_UPDATE"]).get("compression")
        if fields is None:
            return None
        from propeller.protocol.compression import Compression  # 1 MB that few proplets need

        return Compression.decode(fields)
    except MalformedMessageError as error:
        raise TaskError(f"FL_UPDATE: compression: {error}") from None


def encoding_argument(asked: "Compression", update: ProgramOutput, env: Mapping[str, str]) -> str:
    """What ``update_encoding.encode`` is told of an update.

    Raises:
        TaskError: the task's seed is none.
    """
    argument: dict[str, Any] = {
        "scheme": None,
        "zstd": asked.zstd,
        "metadata": document_metadata(update.header),
    }
    if asked.is_lossy:
        argument |= {
            "scheme": asked.model_dump(include={"top_k", "values", "error_feedback"}),
            "seed": _seed(env),
            "is_difference": update.header.kind == "delta",
            "uncompressed": update.size,
        }
    return json.dumps(argument)


def encoded_output(asked: "Compression", update: ProgramOutput, body: bytes | FileBody) -> ProgramOutput:
    """An update as it is sent, with the body that ``update_encoding.encode`` made."""
    media_type = SAFETENSORS if asked.is_lossy else update.media_type
    return replace(update, body=body, coding=ZSTD if asked.zstd else None, media_type=media_type)


def _seed(env: Mapping[str, str]) -> int:
    text = env.get("FL_SEED", "0")
    seed = read_count(text, 20)
    if seed is None:
        raise TaskError(f"FL_SEED is {text[:80]!r}; it is a whole number of 0 or more")
    return seed
