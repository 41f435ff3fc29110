"""Server states as files: ``server_state_v{n}.safetensors``, one for a model version, written once, whole and durably.

A server state is what a strategy keeps from round to round: named tensors, and small values as JSON in the document's
``__metadata__.values``. It belongs to the version that the round made, so that any aggregator can go on from there.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from propeller.errors import ConflictError, InvalidError, NotFoundError, TooLargeError
from propeller.fl.tensors import Tensors, to_safetensors
from propeller.process.files import write_durably
from propeller.protocol.wire import MalformedMessageError, decode_object

VALUES_FIELD = "values"
"""The field of a document's ``__metadata__`` that has a state's values."""

MAX_VALUES_BYTES = 1024 * 1024
"""The longest values, as JSON in UTF-8."""


class StateExistsError(ConflictError):
    """The version has another server state."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} has another server state, and states never change")


class StateNotFoundError(NotFoundError):
    """The version has no server state."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"version {version} has no server state: its strategy keeps none, or it was not made by a round"
        )


class StateStore:
    """The server states in a folder. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is that of the model versions."""
        self._folder = folder

    def has(self, version: int) -> bool:
        """Whether a version has a state."""
        return self._path(version).exists()

    def read(self, version: int) -> bytes:
        """The state of a version, as a safetensors document.

        Raises:
            StateNotFoundError: it has none.
        """
        try:
            return self._path(version).read_bytes()
        except FileNotFoundError:
            raise StateNotFoundError(version) from None

    def add(self, version: int, tensors: Tensors, metadata: Mapping[str, str]) -> None:
        """Keep the state of a version; on the disk when this returns. The same state again changes nothing.

        Raises:
            StateExistsError: it has another one.
            TensorError: a tensor cannot be stored.
            InvalidError: the values are not JSON.
        """
        # In one order of names and fields: then the same state is the same bytes.
        fields = dict(sorted({**metadata, VALUES_FIELD: _values(metadata.get(VALUES_FIELD, "{}"))}.items()))
        document = to_safetensors(dict(sorted(tensors.items())), fields)
        try:
            write_durably(self._path(version), document, replace=False)
        except FileExistsError:
            if self.read(version) != document:
                raise StateExistsError(version) from None

    def _path(self, version: int) -> Path:
        return self._folder / f"server_state_v{version}.safetensors"


def _values(text: str) -> str:
    size = len(text.encode(errors="replace"))
    if size > MAX_VALUES_BYTES:
        raise TooLargeError(
            f"values: {size} bytes of JSON are over the limit of {MAX_VALUES_BYTES}; keep large ones as tensors"
        )
    try:
        fields = decode_object(text)
    except MalformedMessageError as error:
        raise InvalidError(f"values: {error}") from None
    return json.dumps(fields, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False)
