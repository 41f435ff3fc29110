"""The versions of a simulation's model, and what strategies have for devices with each: files, which workers read too."""

import weakref
from pathlib import Path

from cachetools import LRUCache

from propeller.fl.strategies import ServerState
from propeller.fl.tensors import Tensors, from_safetensors, to_safetensors
from propeller.simulation.scratch_folder import open_scratch

_IN_MEMORY = 2
"""Versions that are kept in memory: the newest, and one that an asynchronous merge goes back to."""


class ModelFiles:
    """Versions of a model in a folder of its own, which is there as long as this object.

    Attributes:
        folder: the folder.
        newest: the number of the newest version; 0 while there is none.
    """

    def __init__(self) -> None:
        """No version yet."""
        folders = open_scratch()
        self.folder = folders.own
        self.newest = 0
        self._remove = weakref.finalize(self, folders.close)
        self._kept: LRUCache[int, Tensors] = LRUCache(_IN_MEMORY)

    def add(self, version: int, model: Tensors) -> None:
        """Store a version, the newest one."""
        self.model_file(version).write_bytes(to_safetensors(model))
        self._kept[version] = model
        self.newest = version

    def __getitem__(self, version: int) -> Tensors:
        """A version.

        Raises:
            KeyError: there is none.
        """
        if type(version) is not int:
            raise KeyError(version)
        if version not in self._kept:
            try:
                self._kept[version] = from_safetensors(self.model_file(version).read_bytes())[0]
            except FileNotFoundError:
                raise KeyError(version) from None
        return self._kept[version]

    def model_file(self, version: int) -> Path:
        """The file of a version, in safetensors."""
        return self.folder / f"model-{version}.safetensors"

    def strategy_file(self, version: int, state: ServerState | None) -> Path | None:
        """The file of what a strategy has for devices that train on a version; ``None``: nothing."""
        if state is None or not state.tensors:
            return None
        file = self.folder / f"strategy-{version}.safetensors"
        if not file.exists():
            file.write_bytes(to_safetensors(state.tensors))
        return file
