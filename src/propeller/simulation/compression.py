"""Updates compressed as the experiment asks for it, by the code that a proplet has run for it, in the worker's own process."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from propeller.proplet.compression import asked_compression, encoded_output, encoding_argument
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import SAFETENSORS
from propeller.proplet.update_encoding import encode
from propeller.proplet.update_files import ENCODED, MODEL, RESIDUAL, UPDATE, UPDATE_JSON
from propeller.proplet.updates import ProgramOutput
from propeller.protocol.compression import Compression
from propeller.protocol.evaluations import EVALUATE
from propeller.tensors.shapes import TensorError
from propeller.wasm import folder_contents


class ClientCompressor:
    """Compresses the updates of one client after the other in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made; nobody else writes to it."""
        self._folder = folder
        folder.mkdir(mode=0o700)

    def compress(
        self, update: ProgramOutput, env: Mapping[str, str], model: Path, residual: Path | None
    ) -> tuple[ProgramOutput, Path | None]:
        """The update as a device sends it, and what it leaves for the client's next one: a file that is there until the next call.

        Args:
            update: as the program left it.
            env: of the task.
            model: the base model.
            residual: what the client's updates have left out so far, if anything.

        Raises:
            TaskError: the experiment asks for what is not known here, or the update cannot be compressed.
        """
        asked: Compression | None = asked_compression(
            env
        )  # imported here: a confined process reads no modules
        if asked is None or asked.is_none or env.get("FL_MODE") == EVALUATE:
            return update, None
        if not isinstance(update.body, bytes):
            raise TaskError("the update is in a file, and was read into memory")
        given, made = self._folder / "in", self._folder / "out"
        for folder in (given, made):
            if folder.exists():
                folder_contents.remove(folder)
            folder.mkdir(mode=0o700)
        (given / (UPDATE if update.media_type == SAFETENSORS else UPDATE_JSON)).write_bytes(update.body)
        if asked.is_lossy:
            (given / MODEL).symlink_to(model)
            if residual is not None:
                (given / RESIDUAL).symlink_to(residual)
        before = Path.cwd()
        os.chdir(self._folder)  # where the code of a proplet's process expects its files
        try:
            told = json.loads(encode(encoding_argument(asked, update, env)))
        except TensorError as error:
            raise TaskError(f"the update cannot be compressed (update.compression): {error}") from None
        finally:
            os.chdir(before)
        if lost := told.get("residual_lost"):  # a device goes on without it; here, something is wrong
            raise TaskError(f"what earlier updates left out is lost: {lost}")
        left = made / RESIDUAL
        return encoded_output(asked, update, (made / ENCODED).read_bytes()), left if left.exists() else None
