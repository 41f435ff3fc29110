"""Model versions over the files: encoded as a caller wants them, the recent ones from memory."""

import asyncio
import math
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from propeller.errors import InvalidError, NotAcceptableError, NotFoundError, UnavailableError
from propeller.fl.tensors import CODECS, SAFETENSORS, Codec, Specs, Tensors, from_json, to_safetensors
from propeller.fl.tensors.npz import NPZ, from_npz, to_npz
from propeller.model_registry.aliases import LATEST, AliasStore, check_alias
from propeller.model_registry.diff import diff_documents, diff_lineages
from propeller.model_registry.documents import Upload
from propeller.model_registry.states import DamagedStateError, StateStore
from propeller.model_registry.store import (
    DIGEST_FIELD,
    MAX_VERSION,
    DamagedVersionError,
    FileStamp,
    ModelStore,
    VersionNotFoundError,
    lineage_of,
    stamp_of,
    without_own_fields,
)
from propeller.process.byte_lru import ByteLru
from propeller.process.logs import get_logger
from propeller.process.single_flight import SingleFlight
from propeller.protocol.rounds import model_uri
from propeller.protocol.wire import format_time
from propeller.tensors.safetensors import Header, encode_header
from propeller.web.ranges import Body

log = get_logger("model-registry")

T = TypeVar("T")

MAX_DECODED = 100 * 1024 * 1024
"""The default of the largest model that is decoded or encoded in memory, in bytes."""

_MAX_DIGITS = len(str(MAX_VERSION))


WRITE_BYTES = 1024 * 1024
"""How much of an upload is gathered in memory before it is written, in bytes."""

_SMALL_BYTES = 1024 * 1024
"""Up to here a safetensors document is kept in memory for the next who asks, in bytes."""


@dataclass(frozen=True)
class EncodedModel:
    """A version or a server state in one encoding.

    Attributes:
        body: what is sent.
        etag: the entity tag that stands for it (RFC 9110, section 8.8.3).
        stamp: of the file it was made from.
    """

    body: Body
    etag: str
    stamp: FileStamp


class ModelRegistry:
    """The versions of one model.

    Attributes:
        codecs: the encodings of a version, by media type.
        max_decoded: the largest version that is decoded or encoded in memory (not safetensors), in bytes.
    """

    def __init__(
        self,
        store: ModelStore,
        states: StateStore,
        aliases: AliasStore,
        *,
        cache_bytes: int,
        max_decoded: int = MAX_DECODED,
    ) -> None:
        """Open a registry.

        Args:
            store: the versions.
            states: their server states.
            aliases: their names.
            cache_bytes: limits the encodings that are kept in memory.
            max_decoded: see the attribute.
        """
        self.codecs = CODECS | {NPZ: Codec("npz", partial(from_npz, max_bytes=max_decoded), to_npz)}
        self.max_decoded = max_decoded
        self._store, self._states, self._aliases = store, states, aliases
        self._cache: ByteLru[tuple[int, str], EncodedModel] = ByteLru(
            cache_bytes, lambda encoded: len(encoded.body.head)
        )
        self._diffs = asyncio.Lock()
        self._checks: SingleFlight[int, str] = SingleFlight()
        self._encodings: SingleFlight[tuple[int, str], EncodedModel] = SingleFlight()

    @classmethod
    def open(cls, folder: Path, **limits: int) -> Self:
        """The registry of a folder, which is made if it is missing.

        Raises:
            OSError: it cannot be used.
        """
        return cls(ModelStore(folder), StateStore(folder), AliasStore(folder), **limits)

    async def seed(self, model: Mapping[str, Any]) -> None:
        """Store version 0, unless it is there.

        Raises:
            TensorError: the model is not one.
        """
        if 0 not in await self.versions():
            await self.add(from_json(model), {}, version=0)

    async def versions(self) -> list[int]:
        """Every version, in order."""
        return await asyncio.to_thread(self._store.versions)

    async def latest_version(self) -> int:
        """The largest version.

        Raises:
            NotFoundError: there is none.
        """
        versions = await self.versions()
        if not versions:
            raise NotFoundError("there is no model yet; POST /models stores one")
        return versions[-1]

    async def find(self, name: str) -> int:
        """The version that a number, ``latest`` or an alias stands for; whether a number is there is not checked.

        Raises:
            NotFoundError: there is no version yet, or no such alias.
            InvalidError: it can be none of these.
        """
        if name == LATEST:
            return await self.latest_version()
        if name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS:
            return int(name)
        return await asyncio.to_thread(self._aliases.version, name)

    async def aliases(self) -> dict[str, int]:
        """Every alias and its version."""
        return await asyncio.to_thread(self._aliases.all)

    async def alias(self, name: str) -> int:
        """The version that an alias stands for.

        Raises:
            NotFoundError: there is none of this name.
            InvalidError: it cannot be an alias.
        """
        return await asyncio.to_thread(self._aliases.version, name)

    async def put_alias(self, name: str, version: int) -> None:
        """Have an alias stand for a version.

        Raises:
            VersionNotFoundError: there is no such version.
            InvalidError: it cannot be an alias.
        """
        check_alias(name)
        self._store.stamp(version)
        await asyncio.to_thread(self._aliases.put, name, version)
        log.info("alias set", alias=name, version=version)

    async def delete_alias(self, name: str) -> None:
        """Forget an alias.

        Raises:
            NotFoundError: there is none of this name.
        """
        await asyncio.to_thread(self._aliases.delete, name)
        log.info("alias deleted", alias=name)

    async def add(
        self, tensors: Tensors, metadata: Mapping[str, str], version: int | None = None, key: str = ""
    ) -> int:
        """Store a model, and return its version; as ``add_document``."""
        return await self.add_document(_once(to_safetensors(tensors, metadata)), version, key)

    async def add_document(
        self, pieces: AsyncIterable[bytes], version: int | None = None, key: str = ""
    ) -> int:
        """Store a model that comes as a safetensors document, and return its version.

        Args:
            pieces: the document, in pieces of any sizes.
            version: the one to store it as; else the next one.
            key: the same key again gives the version that it gave first.

        Raises:
            InvalidError: the version or the lineage cannot be one.
            TensorError: the document is malformed, or a tensor cannot be stored.
            ConflictError: the version is there with other content, or there is no next one.
        """
        if version is not None and not 0 <= version <= MAX_VERSION:
            raise InvalidError(f"version: must be from 0 to {MAX_VERSION}, got {version}")
        stored = await _receive(
            pieces, lambda: self._store.upload(key), lambda upload: self._store.add(upload, version)
        )
        log.info("model stored", version=stored.version, model_uri=model_uri(stored.version), key=key or None)
        return stored.version

    async def encoded(self, version: int, media_type: str, *, whole: bool = True) -> EncodedModel:
        """A version in one of the media types of ``codecs``.

        Args:
            version: which.
            media_type: how.
            whole: whether all of it will be sent: then its numbers are compared with its digest first, once for a file.

        Raises:
            VersionNotFoundError: there is no such version.
            DamagedVersionError: its file cannot be used.
            NotAcceptableError: it is too large to be made in memory.
        """
        key = (version, media_type)
        try:
            encoded = self._cache.get(key)
            if encoded is None or encoded.stamp != self._store.stamp(version):
                # Many ask for a new model at once: it is encoded once for all of them.
                encoded = await self._encodings.run(
                    key, lambda: asyncio.to_thread(self._encode, version, media_type)
                )
                self._cache[key] = encoded
            if whole and encoded.body.open_rest is not None:
                await self._checks.run(version, lambda: asyncio.to_thread(self._store.check, version))
        except VersionNotFoundError:
            self._cache.pop(key, None)
            raise
        except DamagedVersionError as error:
            log.error("Invalid model file", version=version, reason=error.reason)  # noqa: TRY400
            raise
        return encoded

    async def page(
        self, *, experiment: str | None, strategy: str | None, alias: str | None, limit: int, offset: int
    ) -> dict[str, Any]:
        """The versions that fit, newest first: how many there are, and what is known of those on one page.

        Args:
            experiment: only those of this experiment.
            strategy: only those made by this strategy, a name or a program.
            alias: only the one that this stands for.
            limit: the most on the page.
            offset: how many to leave out before it.

        Raises:
            NotFoundError: there is no such alias.
        """
        chosen = None if alias is None else await self.find(alias)
        named = _names_of(await self.aliases())

        def read() -> dict[str, Any]:
            versions = [
                record.version
                for record in reversed(self._store.records())
                if chosen in {None, record.version}
                and experiment in {None, record.experiment}
                and strategy in {None, record.strategy}
            ]
            page = versions[offset : offset + limit]
            return {
                "total": len(versions),
                "models": [line for version in page if (line := self._line(version, named)) is not None],
            }

        return await asyncio.to_thread(read)

    async def diff(self, first: int, second: int) -> dict[str, Any]:
        """How a version differs from another: ``diff_documents`` and ``diff_lineages``.

        Raises:
            VersionNotFoundError: there is no such version.
            DamagedVersionError: a file cannot be used.
        """

        def compare() -> dict[str, Any]:
            for version in (first, second):
                self._store.check(version)
            with self._store.open(first) as ours, self._store.open(second) as theirs:
                lineages = diff_lineages(lineage_of(ours.metadata), lineage_of(theirs.metadata))
                return {"from": first, "to": second, **diff_documents(ours, theirs), "lineage": lineages}

        async with self._diffs:  # one at a time: each takes a processor and two blocks of every tensor
            return await asyncio.to_thread(compare)

    async def info(self, version: int) -> dict[str, Any]:
        """What is known of a version, as ``GET /models/{version}/info`` answers it.

        Raises:
            VersionNotFoundError: there is no such version.
            DamagedVersionError: its file cannot be read.
        """
        named = _names_of(await self.aliases())
        specs, info = await asyncio.to_thread(self._info, version, named)
        tensors = {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in specs.items()}
        return {**info, "tensors": tensors}

    async def add_state(self, version: int, pieces: AsyncIterable[bytes]) -> None:
        """Keep the server state that belongs to a version and comes as a safetensors document.

        Raises:
            VersionNotFoundError: there is no such version.
            ConflictError: it has another state.
            InvalidError: the values cannot be stored.
            TensorError: the document is malformed, or a tensor cannot be stored.
        """
        self._store.stamp(version)
        await _receive(pieces, self._states.upload, lambda upload: self._states.add(version, upload))
        log.info("server state stored", version=version)

    async def state(self, version: int, *, whole: bool = True) -> EncodedModel:
        """The server state of a version, as a safetensors document; ``whole`` as in ``encoded``.

        Raises:
            VersionNotFoundError: there is no such version.
            StateNotFoundError: it has none.
            DamagedStateError: its file cannot be used.
        """
        self._store.stamp(version)
        try:
            return await asyncio.to_thread(self._state, version, whole)
        except DamagedStateError as error:
            log.error("Invalid state file", version=version, reason=error.reason)  # noqa: TRY400
            raise

    def _info(self, version: int, named: Mapping[int, list[str]]) -> tuple[Specs, dict[str, Any]]:
        with self._store.open(version) as document:
            specs = document.specs
            return specs, {
                "version": version,
                "created_at": format_time(self._store.created_at(version, document.metadata)),
                "size": self._store.stamp(version)[2],
                "digest": self._store.record(version).digest,
                "lineage": lineage_of(document.metadata),
                "aliases": named.get(version, []),
                "has_state": self._states.has(version),
            }

    def _line(self, version: int, named: Mapping[int, list[str]]) -> dict[str, Any] | None:
        """A version on a page; ``None`` if it was taken away meanwhile."""
        try:
            specs, info = self._info(version, named)
        except VersionNotFoundError:
            return None
        except DamagedVersionError as error:
            return {"version": version, "error": str(error)}
        numbers = sum(math.prod(spec.shape) for spec in specs.values())
        lineage = info.pop("lineage")
        if lineage is not None:
            lineage.pop("updates", None)
        return {**info, "tensors": len(specs), "numbers": numbers, "lineage": lineage}

    def _encode(self, version: int, media_type: str) -> EncodedModel:
        stamp, codec = self._store.stamp(version), self.codecs[media_type]
        digest = self._store.record(version).digest
        etag = f'"{digest[:32]}-{version}-{codec.name}"'
        small = stamp[2] <= min(_SMALL_BYTES, self.max_decoded)
        if media_type == SAFETENSORS and not small and stamp[0].endswith(".safetensors"):
            with self._store.open(version) as document:
                metadata = without_own_fields(document.metadata)
                body = _file_body(document.header, metadata, self._store.path(version), stamp)
            return EncodedModel(body, etag, stamp)
        if stamp[2] > self.max_decoded and media_type != SAFETENSORS:
            raise NotAcceptableError(
                f"version {version} has {stamp[2]} bytes, over REGISTRY_MAX_DECODED_BYTES ({self.max_decoded}) for {media_type}: "
                f"ask for it with Accept: {SAFETENSORS}"
            )
        content = codec.encode(*self._store.read(version))
        return EncodedModel(Body(content, len(content)), etag, stamp)

    def _state(self, version: int, whole: bool) -> EncodedModel:
        if whole:
            self._states.check(version)
        path = self._states.path(version)
        with self._states.open(version) as document:
            stamp = stamp_of(path)
            body = _file_body(document.header, without_own_fields(document.metadata), path, stamp)
            return EncodedModel(body, f'"{document.metadata[DIGEST_FIELD][:32]}-{version}-state"', stamp)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _receive(
    pieces: AsyncIterable[bytes], begin: Callable[[], Upload], end: Callable[[Upload], T]
) -> T:
    """Write an upload as it comes, with little of it in memory, and hand it on once it is complete and checked."""
    gathered = bytearray()
    upload: Upload | None = None

    def take(piece: bytearray) -> Upload:
        nonlocal upload
        upload = upload or begin()
        upload.write(piece)
        return upload

    def finish() -> T:
        with take(gathered) as complete:
            complete.finish()
            return end(complete)

    try:
        async for piece in pieces:
            gathered += piece
            if len(gathered) >= WRITE_BYTES:
                await asyncio.to_thread(take, gathered)
                gathered = bytearray()
        return await asyncio.to_thread(finish)
    except BaseException:
        if upload is not None:
            await asyncio.to_thread(upload.close)
        raise


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


def _names_of(aliases: Mapping[str, int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name in sorted(aliases):
        names.setdefault(aliases[name], []).append(name)
    return names
