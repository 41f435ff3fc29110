"""Model versions over the files: encoded as a caller wants them, the recent ones from memory."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from propeller.errors import InvalidError, NotFoundError
from propeller.fl.tensors import CODECS, Tensors, from_json
from propeller.model_registry.aliases import LATEST, AliasStore, check_alias
from propeller.model_registry.states import StateStore
from propeller.model_registry.store import (
    LINEAGE_FIELD,
    MAX_VERSION,
    DamagedVersionError,
    FileStamp,
    ModelStore,
    VersionNotFoundError,
)
from propeller.process.byte_lru import ByteLru
from propeller.process.logs import get_logger
from propeller.process.single_flight import SingleFlight
from propeller.protocol.models import lineage_text
from propeller.protocol.rounds import model_uri
from propeller.protocol.wire import format_time

log = get_logger("model-registry")

_MAX_DIGITS = len(str(MAX_VERSION))


@dataclass(frozen=True)
class EncodedModel:
    """A version in one encoding.

    Attributes:
        content: the body.
        etag: the entity tag that stands for it (RFC 9110, section 8.8.3).
        stamp: of the file it was made from.
    """

    content: bytes
    etag: str
    stamp: FileStamp


class ModelRegistry:
    """The versions of one model."""

    def __init__(
        self, store: ModelStore, states: StateStore, aliases: AliasStore, *, cache_bytes: int
    ) -> None:
        """``cache_bytes`` limits the encodings that are kept in memory."""
        self._store, self._states, self._aliases = store, states, aliases
        self._cache: ByteLru[tuple[int, str], EncodedModel] = ByteLru(
            cache_bytes, lambda encoded: len(encoded.content)
        )
        self._encodings: SingleFlight[tuple[int, str], EncodedModel] = SingleFlight()

    @classmethod
    def open(cls, folder: Path, *, cache_bytes: int) -> Self:
        """The registry of a folder, which is made if it is missing.

        Raises:
            OSError: it cannot be used.
        """
        return cls(ModelStore(folder), StateStore(folder), AliasStore(folder), cache_bytes=cache_bytes)

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
        """Store a model, and return its version.

        Args:
            tensors: the model.
            metadata: kept with it.
            version: the one to store it as; else the next one.
            key: the same key again gives the version that it gave first.

        Raises:
            InvalidError: the version or the lineage cannot be one, or a tensor cannot be stored.
            ConflictError: the version is there with other content, or there is no next one.
        """
        if LINEAGE_FIELD in metadata:
            metadata = {**metadata, LINEAGE_FIELD: lineage_text(metadata[LINEAGE_FIELD])}
        if version is not None and not 0 <= version <= MAX_VERSION:
            raise InvalidError(f"version: must be from 0 to {MAX_VERSION}, got {version}")
        stored = await asyncio.to_thread(self._store.add, tensors, metadata, version, key)
        log.info("model stored", version=stored.version, model_uri=model_uri(stored.version), key=key or None)
        return stored.version

    async def encoded(self, version: int, media_type: str) -> EncodedModel:
        """A version in one of the media types of ``CODECS``.

        Raises:
            VersionNotFoundError: there is no such version.
            DamagedVersionError: its file cannot be used.
        """
        key = (version, media_type)
        try:
            cached = self._cache.get(key)
            if cached is not None and cached.stamp == self._store.stamp(version):
                return cached
            # Many ask for a new model at once: it is encoded once for all of them.
            encoded = await self._encodings.run(
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

    async def info(self, version: int) -> dict[str, Any]:
        """What is known of a version, as ``GET /models/{version}/info`` answers it.

        Raises:
            VersionNotFoundError: there is no such version.
            DamagedVersionError: its file cannot be read.
        """
        found = await asyncio.to_thread(self._store.info, version)
        return {
            "version": version,
            "created_at": format_time(found.created_at),
            "size": found.size,
            "digest": found.digest,
            "tensors": {
                name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in found.specs.items()
            },
            "lineage": json.loads(found.lineage) if found.lineage else None,
            "aliases": sorted(name for name, other in (await self.aliases()).items() if other == version),
            "has_state": await asyncio.to_thread(self._states.has, version),
        }

    async def add_state(self, version: int, tensors: Tensors, metadata: Mapping[str, str]) -> None:
        """Keep the server state that belongs to a version.

        Raises:
            VersionNotFoundError: there is no such version.
            ConflictError: it has another state.
            InvalidError: a tensor or the values cannot be stored.
        """
        self._store.stamp(version)
        await asyncio.to_thread(self._states.add, version, tensors, metadata)
        log.info("server state stored", version=version)

    async def state(self, version: int) -> bytes:
        """The server state of a version, as a safetensors document.

        Raises:
            VersionNotFoundError: there is no such version.
            StateNotFoundError: it has none.
        """
        self._store.stamp(version)
        return await asyncio.to_thread(self._states.read, version)

    def _encode(self, version: int, media_type: str) -> EncodedModel:
        codec, stamp, model = CODECS[media_type], self._store.stamp(version), self._store.read(version)
        content = codec.encode(model.tensors, model.metadata)
        return EncodedModel(content, f'"{model.digest[:32]}-{version}-{codec.name}"', stamp)
