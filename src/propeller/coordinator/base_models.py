"""Base models as tensors, for what is measured from them: large ones are in files, read as they are looked at."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cachetools import LRUCache

from propeller.coordinator.large_updates import model_bytes
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.errors import UnavailableError
from propeller.fl.tensors import Tensors, from_safetensors
from propeller.protocol.models import LARGE_BYTES
from propeller.store.documents import Document

_KEPT = 2
"""Base models that are at hand: of the rounds that collect at the same time."""


class BaseModels:
    """The base models of the rounds that collect; the last few are kept."""

    def __init__(self, registry: ModelRegistryClient, folder: Path) -> None:
        """Ask ``registry``; files without names, for large models, are in ``folder``, made when it is needed."""
        self._registry, self._folder = registry, folder
        self._kept: LRUCache[int, Tensors] = LRUCache(_KEPT)
        self._asking = asyncio.Lock()

    async def tensors(self, version: int) -> Tensors:
        """The tensors of a version.

        Raises:
            NotFoundError: there is no such version.
            UnavailableError: the registry does not answer, or there is no room on the disk.
        """
        async with self._asking:
            if version not in self._kept:
                self._kept[version] = await self._read(version)
            return self._kept[version]

    async def _read(self, version: int) -> Tensors:
        specs = await self._registry.specs(version)
        if model_bytes(specs) <= LARGE_BYTES:
            return from_safetensors(await self._registry.document(version), finite=False)[0]
        with self._file() as file:
            await self._registry.write_document(version, file)
            return _map(file)

    async def read(self, pieces: AsyncIterable[bytes]) -> Tensors:
        """The tensors of a document that comes in pieces.

        Raises:
            TensorError: it is none.
            UnavailableError: there is no room on the disk.
        """
        gathered = bytearray()
        pieces = aiter(pieces)
        async for piece in pieces:
            gathered += piece
            if len(gathered) > LARGE_BYTES:
                break
        else:
            return from_safetensors(gathered, finite=False)[0]
        with self._file() as file:
            await asyncio.to_thread(file.write, gathered)
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
            return _map(file)

    @contextlib.contextmanager
    def _file(self) -> Iterator[BinaryIO]:
        """A file without a name; what is mapped of it stays once it is closed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                yield file
        except OSError as error:
            raise UnavailableError(
                f"the folder {self._folder} for large models cannot be used: {error.strerror}; free some of its disk, or set "
                "COORDINATOR_STATE"
            ) from error


def _map(file: BinaryIO) -> Tensors:
    file.flush()
    return from_safetensors(Document(file).map(), finite=False)[0]
