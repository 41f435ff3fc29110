"""The files of MNIST and of sets in its form (Fashion-MNIST, EMNIST): IDX, by LeCun, Cortes and Burges."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError

_BYTES = 0x08
"""The code of unsigned bytes in an IDX file; the other types do not occur in images and labels."""

_PARTS = {"train": "train", "test": "t10k"}
_FETCH = "fetch it again"

Columns = dict[str, npt.NDArray[Any]]


def read_idx_folder(folder: Path) -> tuple[Columns, Columns | None]:
    """The images as ``x``, float32 from 0 to 1 and of shape [samples, pixels], and labels as ``y``, int64; then those of the test set.

    Each file may be plain or end in ``.gz``. The ones that begin with ``t10k`` may be missing, both.

    Raises:
        InvalidError: a file is missing, damaged, or does not fit the other one.
        OSError: a file cannot be read.
    """
    train = _read_pair(folder, _PARTS["train"])
    if train is None:
        there = ", ".join(sorted(one.name for one in folder.iterdir())[:10]) or "nothing"
        raise InvalidError(
            f"data: {folder} has no train-images-idx3-ubyte and train-labels-idx1-ubyte (plain or .gz); it has {there}"
        )
    return train, _read_pair(folder, _PARTS["test"])


def pixels(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bytes as float32 from 0 to 1, in one step: nothing but the result is allocated."""
    return np.divide(raw, np.float32(255), dtype=np.float32)


def _read_pair(folder: Path, part: str) -> Columns | None:
    images_file, labels_file = _find(folder, f"{part}-images", 3), _find(folder, f"{part}-labels", 1)
    if images_file is None and labels_file is None:
        return None
    if images_file is None or labels_file is None:
        missing = f"{part}-images-idx3-ubyte" if images_file is None else f"{part}-labels-idx1-ubyte"
        raise InvalidError(f"data: {folder} has no {missing}, to go with {images_file or labels_file}")
    labels = read_idx(labels_file, 1)
    images = read_idx(images_file, 3)
    if len(images) != len(labels):
        raise InvalidError(
            f"data: {images_file.name} has {len(images)} images and {labels_file.name} {len(labels)} labels: {_FETCH}, both of one set"
        )
    return {"x": pixels(images.reshape(len(images), -1)), "y": labels.astype(np.int64)}


def _find(folder: Path, stem: str, dimensions: int) -> Path | None:
    names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes, with so many dimensions.

    Raises:
        InvalidError: it is none, or damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InvalidError(f"data: {path}: is no whole gzip file ({error}): {_FETCH}") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, _BYTES, dimensions]):
        raise InvalidError(
            f"data: {path}: begins with {content[:4].hex() or 'nothing'}, and an IDX file of bytes with {dimensions} dimension{'s' * (dimensions > 1)} "
            f"with 000008{dimensions:02x}: {_FETCH}"
        )
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise InvalidError(
            f"data: {path}: has {len(content)} bytes, and its header says {expected}: {_FETCH}"
        )
    if not shape[0]:
        raise InvalidError(f"data: {path}: is empty")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
