"""Versions and server states as they are sent: encoded as a caller wants them, large ones from their files."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from propeller.errors import NotAcceptableError, UnavailableError
from propeller.fl.tensors import CODECS, JSON, SAFETENSORS, Codec
from propeller.fl.tensors.media import names, negotiate
from propeller.fl.tensors.npz import NPZ, from_npz, to_npz
from propeller.model_registry.states import DamagedStateError, StateStore
from propeller.model_registry.store import (
    DIGEST_FIELD,
    DamagedVersionError,
    FileStamp,
    ModelStore,
    VersionNotFoundError,
    sent_metadata,
    stamp_of,
    without_own_fields,
)
from propeller.process.byte_lru import ByteLru
from propeller.process.logs import get_logger
from propeller.process.single_flight import SingleFlight
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.multipart import MULTIPART, pack, packed_type
from propeller.tensors.safetensors import Header, encode_header
from propeller.web.ranges import Body

log = get_logger("model-registry")

MAX_DECODED = 100 * 1024 * 1024
"""The default of the largest model that is decoded or encoded in memory, in bytes."""

_SMALL_BYTES = 1024 * 1024
"""Up to here a safetensors document is kept in memory for the next who asks, in bytes."""


@dataclass(frozen=True)
class EncodedModel:
    """A version or a server state in one encoding.

    Attributes:
        media_type: its ``Content-Type``.
        body: what is sent.
        etag: the entity tag that stands for it (RFC 9110, section 8.8.3).
        digest: of the version.
        stamp: of the file it was made from.
    """

    media_type: str
    body: Body
    etag: str
    digest: str
    stamp: FileStamp


class Encodings:
    """The versions and server states of a registry as they are sent.

    Attributes:
        codecs: the encodings of a version, by media type.
        max_decoded: the largest version that is decoded or encoded in memory (not safetensors), in bytes.
    """

    def __init__(
        self, store: ModelStore, states: StateStore, *, cache_bytes: int, max_decoded: int = MAX_DECODED
    ) -> None:
        """Encode what is in ``store`` and ``states``; at most ``cache_bytes`` of it are kept in memory."""
        self.codecs = CODECS | {NPZ: Codec("npz", partial(from_npz, max_bytes=max_decoded), to_npz)}
        self.max_decoded = max_decoded
        self._store, self._states = store, states
        self._cache: ByteLru[tuple[int, str], EncodedModel] = ByteLru(
            cache_bytes, lambda encoded: len(encoded.body.head)
        )
        self._running: SingleFlight[tuple[int, str], EncodedModel] = SingleFlight()
        self._checks: SingleFlight[tuple[str, int], str] = SingleFlight()

    def choose(self, version: int, accept: str | None) -> str:
        """The media type in which a version is sent to one who sent this ``Accept`` header.

        A large one is sent as safetensors to whoever names that, even if something else would be liked better. JSON and
        safetensors together, as ``multipart/mixed``, are for those who name that.

        Raises:
            VersionNotFoundError: there is no such version.
            NotAcceptableError: none of the media types is accepted.
        """
        offered = [*self.codecs, MULTIPART] if names(accept, MULTIPART) else self.codecs
        chosen = negotiate(accept, offered)
        most = min(LARGE_BYTES, self.max_decoded)
        is_large = chosen != SAFETENSORS and self._store.stamp(version)[2] > most
        return SAFETENSORS if is_large and names(accept, SAFETENSORS) else chosen

    async def model(self, version: int, media_type: str) -> EncodedModel:
        """A version in the media type that ``choose`` chose. Before numbers of a large one are sent, ``check_model``.

        Raises:
            VersionNotFoundError: there is no such version.
            DamagedVersionError: its file cannot be used.
            NotAcceptableError: it is too large to be made in memory.
        """
        key = (version, media_type)
        try:
            cached = self._cache.get(key)
            if cached is not None and cached.stamp == self._store.stamp(version):
                return cached
            # Many ask for a new model at once: it is encoded once for all of them.
            encoded = await self._running.run(
                key, lambda: asyncio.to_thread(self._encode, version, media_type)
            )
        except VersionNotFoundError:
            self._cache.pop(key, None)
            raise
        except DamagedVersionError as error:
            log.error("Invalid model file", version=version, reason=error.reason)  # noqa: TRY400
            raise
        self._cache[key] = encoded
        return encoded

    async def check_model(self, version: int) -> None:
        """Compare a version's numbers with their digest, once for a file.

        Raises:
            DamagedVersionError: they are others.
        """
        try:
            await self._checks.run(("model", version), lambda: asyncio.to_thread(self._store.check, version))
        except DamagedVersionError as error:
            log.error("Invalid model file", version=version, reason=error.reason)  # noqa: TRY400
            raise

    async def state(self, version: int) -> EncodedModel:
        """The server state of a version, as safetensors. Before numbers of it are sent, ``check_state``.

        Raises:
            VersionNotFoundError: there is no such version.
            StateNotFoundError: it has none.
            DamagedStateError: its file cannot be used.
        """
        self._store.stamp(version)
        return await asyncio.to_thread(self._state, version)

    async def check_state(self, version: int) -> None:
        """Compare the numbers of a version's state with their digest, once for a file.

        Raises:
            DamagedStateError: they are others.
        """
        try:
            await self._checks.run(("state", version), lambda: asyncio.to_thread(self._states.check, version))
        except DamagedStateError as error:
            log.error("Invalid state file", version=version, reason=error.reason)  # noqa: TRY400
            raise

    def _encode(self, version: int, media_type: str) -> EncodedModel:
        stamp, digest = self._store.stamp(version), self._store.record(version).digest
        boundary = digest[:32]
        name = "both" if media_type == MULTIPART else self.codecs[media_type].name
        etag = f'"{boundary}-{version}-{name}"'
        small = stamp[2] <= min(_SMALL_BYTES, self.max_decoded)
        if media_type == SAFETENSORS and not small and stamp[0].endswith(".safetensors"):
            with self._store.open(version) as document:
                metadata = sent_metadata(document.metadata)
                body = _file_body(document.header, metadata, self._store.path(version), stamp)
            return EncodedModel(media_type, body, etag, digest, stamp)
        if stamp[2] > self.max_decoded and media_type != SAFETENSORS:
            raise NotAcceptableError(
                f"version {version} has {stamp[2]} bytes, over REGISTRY_MAX_DECODED_BYTES ({self.max_decoded}) for {media_type}: "
                f"ask for it with Accept: {SAFETENSORS}"
            )
        tensors, metadata = self._store.read(version)
        if media_type == MULTIPART:
            both = {name: self.codecs[name].encode(tensors, metadata) for name in (JSON, SAFETENSORS)}
            content, media_type = pack(both, boundary), packed_type(boundary)
        else:
            content = self.codecs[media_type].encode(tensors, metadata)
        return EncodedModel(media_type, Body(content, len(content)), etag, digest, stamp)

    def _state(self, version: int) -> EncodedModel:
        path = self._states.path(version)
        with self._states.open(version) as document:
            stamp = stamp_of(path)
            body = _file_body(document.header, without_own_fields(document.metadata), path, stamp)
            digest = document.metadata.get(DIGEST_FIELD, "")
        etag = f'"{digest[:32]}-{version}-state"'
        return EncodedModel(SAFETENSORS, body, etag, self._store.record(version).digest, stamp)


def _file_body(header: Header, metadata: Mapping[str, str], path: Path, stamp: FileStamp) -> Body:
    """A document as it is sent: with the header of what was sent to us, then the numbers from the file."""
    head = encode_header(header, metadata)

    def open_rest() -> BinaryIO:
        file = path.open("rb")
        status = os.fstat(file.fileno())
        if (status.st_ino, status.st_size, status.st_mtime_ns) != stamp[1:]:
            file.close()
            raise UnavailableError(f"{path.name} was replaced while it was read: try again")
        return file

    return Body(head, len(head) + header.length - header.start, open_rest, header.start)
