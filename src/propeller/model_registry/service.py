"""What a model registry does: versions with lineage and state, their names, and how two differ."""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from propeller.errors import InvalidError, NotFoundError
from propeller.fl.tensors import Specs, Tensors, from_json, to_safetensors
from propeller.model_registry.aliases import LATEST, AliasStore, check_alias
from propeller.model_registry.diff import diff_documents, diff_lineages
from propeller.model_registry.encodings import Encodings
from propeller.model_registry.states import StateStore
from propeller.model_registry.store import (
    MAX_VERSION,
    DamagedVersionError,
    ModelStore,
    VersionNotFoundError,
    VersionRecord,
)
from propeller.model_registry.uploads import Upload
from propeller.process.logs import get_logger
from propeller.protocol.models import lineage_of
from propeller.protocol.rounds import model_uri
from propeller.protocol.wire import format_time

log = get_logger("model-registry")

T = TypeVar("T")

_MAX_DIGITS = len(str(MAX_VERSION))

WRITE_BYTES = 1024 * 1024
"""How much of an upload is gathered in memory before it is written, in bytes."""


class ModelRegistry:
    """The versions of one model.

    Attributes:
        encodings: the versions and states as they are sent.
    """

    def __init__(
        self, store: ModelStore, states: StateStore, aliases: AliasStore, encodings: Encodings
    ) -> None:
        """``encodings`` are those of ``store`` and ``states``."""
        self.encodings = encodings
        self._store, self._states, self._aliases = store, states, aliases
        self._diffs = asyncio.Lock()

    @classmethod
    def open(cls, folder: Path, **limits: int) -> Self:
        """The registry of a folder, which is made if it is missing; ``limits`` are those of ``Encodings``.

        Raises:
            OSError: it cannot be used.
        """
        store, states = ModelStore(folder), StateStore(folder)
        return cls(store, states, AliasStore(folder), Encodings(store, states, **limits))

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
        if name.isascii() and name.isdigit():
            if len(name) > _MAX_DIGITS:
                raise NotFoundError(f"Model not found: versions are from 0 to {MAX_VERSION}")
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
    ) -> VersionRecord:
        """Store a model; as ``add_document``."""
        document = await asyncio.to_thread(to_safetensors, tensors, metadata)
        return await self.add_document(_once(document), version, key)

    async def add_document(
        self, pieces: AsyncIterable[bytes], version: int | None = None, key: str = ""
    ) -> VersionRecord:
        """Store a model that comes as a safetensors document, and return its record.

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
        return stored

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


def _names_of(aliases: Mapping[str, int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name in sorted(aliases):
        names.setdefault(aliases[name], []).append(name)
    return names
