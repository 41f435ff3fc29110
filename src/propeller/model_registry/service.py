"""Model versions over the files: encoded as a caller wants them, the recent ones from memory."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError
from propeller.fl.tensors import CODECS, Tensors, from_json
from propeller.model_registry.store import (
    MAX_VERSION,
    DamagedVersionError,
    ModelStore,
    NoVersionLeftError,
    Stamp,
    VersionExistsError,
    VersionMissingError,
)
from propeller.process.logs import get_logger
from propeller.protocol.rounds import model_uri

log = get_logger("model-registry")


@dataclass(frozen=True)
class Encoded:
    """A version in one encoding: the body, and the entity tag that stands for it (RFC 9110, section 8.8.3)."""

    content: bytes
    etag: str
    stamp: Stamp
    """Of the file it was made from."""


class Models:
    """The versions of one model."""

    def __init__(self, store: ModelStore, *, cache_bytes: int) -> None:
        """``cache_bytes`` limits the encodings that are kept in memory."""
        self._store, self._room = store, cache_bytes
        self._kept: OrderedDict[tuple[int, str], Encoded] = OrderedDict()
        self._encoding: dict[tuple[int, str], asyncio.Task[Encoded]] = {}

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

    async def latest(self) -> int:
        """The largest version.

        Raises:
            NotFoundError: there is none.
        """
        versions = await self.versions()
        if not versions:
            raise NotFoundError("there is no model yet; POST /models stores one")
        return versions[-1]

    async def add(
        self, tensors: Tensors, metadata: Mapping[str, str], version: int | None = None, key: str = ""
    ) -> int:
        """Store a model; gives its version.

        Raises:
            InvalidError: the version cannot be one.
            ConflictError: it is there with other content, or there is no next one.
            TensorError: a tensor cannot be stored.
        """
        if version is not None and not 0 <= version <= MAX_VERSION:
            raise InvalidError(f"version: must be from 0 to {MAX_VERSION}, got {version}")
        try:
            stored = await asyncio.to_thread(self._store.add, tensors, metadata, version, key)
        except VersionExistsError as error:
            raise ConflictError(
                f"version {error} exists with other content, and versions never change; "
                "leave version out to get the next one"
            ) from None
        except NoVersionLeftError:
            raise ConflictError(f"version {MAX_VERSION}, the last there can be, is taken") from None
        log.info("model stored", version=stored.version, model_uri=model_uri(stored.version), key=key or None)
        return stored.version

    async def encoded(self, version: int, media_type: str) -> Encoded:
        """A version in one of the media types of ``CODECS``.

        Raises:
            NotFoundError: there is no such version.
            PropellerError: its file is damaged.
        """
        key = (version, media_type)
        try:
            kept = self._kept.get(key)
            if kept is not None and kept.stamp == self._store.stamp(version):
                self._kept.move_to_end(key)
                return kept
            # A new model is asked for by many at once: it is encoded once for all of them.
            made = await asyncio.shield(self._encoding.get(key) or self._begin(key))
        except VersionMissingError:
            self._kept.pop(key, None)
            raise NotFoundError(
                f"Model not found: there is no version {version}; GET /models lists those there are"
            ) from None
        except DamagedVersionError as error:
            log.error("Invalid model file", version=version, reason=str(error))  # noqa: TRY400
            raise PropellerError(
                f"Invalid model file: version {version} is damaged; restore it from a backup"
            ) from None
        self._keep(key, made)
        return made

    def _begin(self, key: tuple[int, str]) -> asyncio.Task[Encoded]:
        task = asyncio.create_task(asyncio.to_thread(self._encode, *key))
        self._encoding[key] = task

        def end(done: asyncio.Task[Encoded]) -> None:
            del self._encoding[key]
            if not done.cancelled():
                done.exception()  # taken note of: those who asked may all have gone

        task.add_done_callback(end)
        return task

    def _encode(self, version: int, media_type: str) -> Encoded:
        codec, stamp, model = CODECS[media_type], self._store.stamp(version), self._store.read(version)
        content = codec.encode(model.tensors, model.metadata)
        return Encoded(content, f'"{model.digest[:32]}-{codec.name}"', stamp)

    def _keep(self, key: tuple[int, str], encoded: Encoded) -> None:
        self._kept[key] = encoded
        self._kept.move_to_end(key)
        while self._kept and sum(len(kept.content) for kept in self._kept.values()) > self._room:
            self._kept.popitem(last=False)
