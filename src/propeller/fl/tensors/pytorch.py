"""Tensors as ``torch.save`` writes a ``state_dict``, read without PyTorch.

The file is a zip archive of a pickle and the tensors' bytes (PyTorch, docs/source/notes/serialization.rst). A pickle can name any function to
be called: here it may name those that tensors are made of and nothing else, and these are our own.
"""

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from propeller.fl.tensors.base import Tensors, check_tensors
from propeller.fl.tensors.dtypes import DTYPES
from propeller.tensors.shapes import TensorError

_STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""PyTorch's classes of storage, and the dtypes that they hold, as safetensors calls them."""

_MAX_PICKLE_BYTES = 64 << 20


@dataclass(frozen=True)
class _Storage:
    """Stands for one of PyTorch's classes of storage."""

    dtype: str


def from_pytorch(content: bytes) -> tuple[Tensors, dict[str, str]]:
    """Read a ``state_dict``: its tensors in its order, and no metadata.

    Args:
        content: the file that ``torch.save(net.state_dict(), file)`` wrote.

    Raises:
        TensorError: it is none, or a tensor is none of a model.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = _Unpickler.read(archive)
    except TensorError:
        raise
    except Exception as error:  # noqa: BLE001 - what zipfile and pickle raise of a broken file is nowhere said, and much
        raise TensorError(
            f"not a state_dict as torch.save writes it: {error}; safetensors files are read too: propeller.torch.save(net.state_dict(), file)"
        ) from None
    tensors = _state_dict(found)
    check_tensors(tensors)
    return tensors, {}


def _state_dict(found: Any) -> Tensors:
    if not isinstance(found, Mapping) or not found:
        raise TensorError(f"the file holds a {type(found).__name__}; save net.state_dict()")
    wrong = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
    if wrong:
        inner = [name for name, value in found.items() if isinstance(value, Mapping)]
        raise TensorError(
            f"{str(wrong[0])[:80]!r} is no tensor; save net.state_dict() alone"
            + (f" (this file has others under {', '.join(map(repr, inner[:3]))})" if inner else "")
        )
    return {str(name): value for name, value in found.items()}


class _Unpickler(pickle.Unpickler):
    """Reads a pickle that names nothing but what tensors are made of."""

    def __init__(self, archive: zipfile.ZipFile, pickled: bytes, folder: str) -> None:
        super().__init__(io.BytesIO(pickled))
        self._archive, self._folder = archive, folder
        order = f"{folder}byteorder"
        self._swap = order in archive.namelist() and archive.read(order).strip() != sys.byteorder.encode()

    @classmethod
    def read(cls, archive: zipfile.ZipFile) -> Any:
        """What the archive's pickle holds."""
        names = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(names) != 1:
            raise TensorError("not a file of torch.save: there is no data.pkl in it")
        if names[0].file_size > _MAX_PICKLE_BYTES:
            raise TensorError(f"data.pkl has more than {_MAX_PICKLE_BYTES} bytes")
        folder = names[0].filename.removesuffix("data.pkl")
        return cls(archive, archive.read(names[0]), folder).load()

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name."""
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_rest: data,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        raise TensorError(f"the file has a {module}.{name}, which is no tensor; save net.state_dict()")

    def persistent_load(self, pid: Any) -> Any:
        """The elements of a storage."""
        kind, storage, key, _place, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise TensorError("the file has a storage of a kind that is not known")
        dtype = DTYPES[storage.dtype]
        member = self._archive.getinfo(f"{self._folder}data/{key}")
        if member.file_size != count * dtype.itemsize:
            raise TensorError(
                f"a tensor's storage has {member.file_size} bytes instead of {count * dtype.itemsize}"
            )
        array = np.frombuffer(self._archive.read(member), dtype)
        return array.byteswap() if self._swap else array


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any) -> Any:
    """A tensor's elements in C order."""
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise TensorError("the file has a tensor without a storage")
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset < 0 or min((*size, *stride, 0)) < 0 or last >= len(storage):
        raise TensorError("the file has a tensor that reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.array(
        np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False), order="C"
    )
