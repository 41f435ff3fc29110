"""Server states as files: ``server_state_v{n}.safetensors``, one for a model version, written once, whole and durably.

A server state is what a strategy keeps from round to round: named tensors, and small values as JSON in the document's
``__metadata__.values``. It belongs to the version that the round made, so that any aggregator can go on from there.
"""

import json
from pathlib import Path

from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError, TooLargeError
from propeller.fl.tensors import TensorError
from propeller.model_registry.store import DIGEST_FIELD, FileStamp, stamp_of, without_own_fields
from propeller.model_registry.uploads import Upload
from propeller.protocol.wire import MalformedMessageError, decode_trusted
from propeller.store.documents import Document

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


class DamagedStateError(PropellerError):
    """The state's file cannot be used.

    Attributes:
        reason: what is wrong with the file, for the log.
    """

    def __init__(self, version: int, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the server state of version {version} is damaged; restore it from a backup")


class StateStore:
    """The server states in a folder. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is that of the model versions."""
        self._folder = folder
        self._checked: dict[int, FileStamp] = {}

    def has(self, version: int) -> bool:
        """Whether a version has a state."""
        return self.path(version).exists()

    def open(self, version: int) -> Document:
        """The state of a version.

        Raises:
            StateNotFoundError: it has none.
            DamagedStateError: its file cannot be used.
        """
        try:
            return Document.open(self.path(version))
        except FileNotFoundError:
            raise StateNotFoundError(version) from None
        except (OSError, TensorError) as error:
            raise DamagedStateError(version, str(error)) from None

    def check(self, version: int) -> str:
        """Compare the numbers of a version's state with the digest they were stored with, once for a file; gives the digest.

        Raises:
            StateNotFoundError: it has none.
            DamagedStateError: its file cannot be used.
        """
        with self.open(version) as document:
            stamp, digest = stamp_of(self.path(version)), document.metadata.get(DIGEST_FIELD, "")
            if self._checked.get(version) == stamp:
                return digest
            try:
                found = document.check()
            except (OSError, TensorError) as error:
                raise DamagedStateError(version, str(error)) from None
            if found != digest:
                raise DamagedStateError(version, "its numbers are not those that were stored")
        self._checked[version] = stamp
        return digest

    def upload(self) -> Upload:
        """Begin a state; to be given to ``add``."""

        def fields(metadata: dict[str, str]) -> dict[str, str]:
            return {**without_own_fields(metadata), VALUES_FIELD: _values(metadata.get(VALUES_FIELD, "{}"))}

        return Upload(self._folder, fields, DIGEST_FIELD, least_tensors=0)

    def add(self, version: int, upload: Upload) -> None:
        """Keep a finished upload as the state of a version; on the disk when this returns. The same again changes nothing.

        Raises:
            StateExistsError: it has another one.
        """
        try:
            upload.commit(self.path(version), replace=False)
        except FileExistsError:
            with self.open(version) as kept:
                if kept.metadata != upload.metadata:
                    raise StateExistsError(version) from None

    def path(self, version: int) -> Path:
        """The file of a version's state."""
        return self._folder / f"server_state_v{version}.safetensors"


def _values(text: str) -> str:
    size = len(text.encode(errors="replace"))
    if size > MAX_VALUES_BYTES:
        raise TooLargeError(
            f"values: {size} bytes of JSON are over the limit of {MAX_VALUES_BYTES}; keep large ones as tensors"
        )
    try:
        fields = decode_trusted(text)
    except MalformedMessageError as error:
        raise InvalidError(f"values: {error}") from None
    return json.dumps(fields, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False)
