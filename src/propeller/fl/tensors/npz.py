"""Tensors as an ``.npz`` file, as ``numpy.savez`` writes it and ``numpy.load`` reads it: never with pickled objects.

Written and read here, as ``numpy.savez`` takes no tensor named ``file``, and ``numpy.load`` unpacks whatever size a file has. An
``.npz`` has no metadata. numpy has no bfloat16 and no 8-bit floats: they are written as float32, which is exact.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from propeller.errors import TooLargeError
from propeller.fl.tensors.base import Tensors, check_tensors
from propeller.fl.tensors.dtypes import Array, name_of
from propeller.fl.tensors.safetensors import MAX_DOCUMENT_BYTES
from propeller.tensors.shapes import TensorError

NPZ = "application/x-npz"

_SUFFIX = ".npy"
_NOT_OF_NUMPY = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArchiveTooLargeError(TooLargeError, TensorError):
    """The arrays in an archive are over the limit."""


def from_npz(content: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> tuple[Tensors, dict[str, str]]:
    """Read an archive, compressed or not: its arrays in its order, and no metadata.

    Args:
        content: the file.
        max_bytes: the most that the arrays may have unpacked.

    Raises:
        TensorError: it is no archive of arrays, or an array is none of a model.
        ArchiveTooLargeError: its arrays have more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            tensors = _read_arrays(archive, max_bytes)
    except TensorError:
        raise
    except Exception as error:  # noqa: BLE001 - what zipfile raises of a broken file is nowhere said, and much
        raise TensorError(f"not an .npz file as numpy.savez writes it: {error}") from None
    check_tensors(tensors)
    return tensors, {}


def to_npz(tensors: Tensors, _metadata: Mapping[str, str]) -> bytes:
    """Write an archive, not compressed; the same tensors are always the same bytes.

    Raises:
        TensorError: it could not be read back: naming the tensor.
    """
    check_tensors(tensors)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in tensors.items():
            # One time for all: the first that a zip can have.
            with archive.open(zipfile.ZipInfo(name + _SUFFIX), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, _plain(array), allow_pickle=False)
    return content.getvalue()


def _read_arrays(archive: zipfile.ZipFile, max_bytes: int) -> Tensors:
    tensors: Tensors = {}
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > max_bytes:
        raise ArchiveTooLargeError(
            f"the arrays of the .npz have {unpacked} bytes, over the limit of {max_bytes} bytes"
        )
    for member in members:
        name = member.filename.removesuffix(_SUFFIX)
        if name == member.filename:
            raise TensorError(f"{name[:80]!r} in the .npz is no array: its name must end in {_SUFFIX}")
        if name in tensors:
            raise TensorError("is in the .npz twice", name)
        with archive.open(member) as stream:
            tensors[name] = _read_array(name, stream, member.file_size)
    return tensors


def _plain(array: Array) -> Array:
    return array if name_of(array.dtype) not in _NOT_OF_NUMPY else array.astype(np.float32)


def _read_array(name: str, stream: Any, size: int) -> Array:
    try:
        shape, by_column, dtype = _read_header(stream)
    except ValueError as error:
        raise TensorError(f"is no array in the .npz: {error}", name) from None
    if dtype.kind not in "fiub":
        raise TensorError(f"is {dtype}; an .npz of a model has floats, integers and bools", name)
    length = math.prod(shape) * dtype.itemsize
    if stream.tell() + length != size:
        raise TensorError(f"has {size - stream.tell()} bytes, not those of {dtype}{list(shape)}", name)
    flat: Array = np.frombuffer(stream.read(), dtype, math.prod(shape))
    return flat.reshape(shape, order="F" if by_column else "C")


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"its format is {version}, not 1.0 or 2.0")
    shape, by_column, dtype = _HEADERS[version](stream)
    return shape, by_column, dtype
