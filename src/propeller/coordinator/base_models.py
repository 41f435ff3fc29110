"""Base models as tensors, for what is measured from them: large ones are in files, read as they are looked at."""

import asyncio
import tempfile
from pathlib import Path

from cachetools import LRUCache

from propeller.coordinator.clients import ModelRegistryClient
from propeller.coordinator.large_updates import model_bytes
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
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The mapping keeps the file once it is closed.
            with tempfile.TemporaryFile(dir=self._folder) as file:
                await self._registry.write_document(version, file)
                file.flush()
                return from_safetensors(Document(file).map(), finite=False)[0]
        except OSError as error:
            raise UnavailableError(
                f"the folder {self._folder} for large models cannot be used: {error.strerror}; free some of its disk, or set "
                "COORDINATOR_STATE"
            ) from error
