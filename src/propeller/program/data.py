"""A device's data, as arrays and as it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from propeller.program.library_arrays import given
from propeller.tensors.array import Array, open_tensor
from propeller.tensors.files import columns
from propeller.tensors.functions import array
from propeller.tensors.randomness import Random, random
from propeller.tensors.shapes import Spec, TensorError


class Data:
    """Samples, column by column: ``data.x`` and ``data["x"]`` are arrays with a row a sample.

    Floats are float32, integers int64. A column that is not numbers of one shape is not among them; ``samples`` has everything.
    """

    def __init__(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Data for a test or a native run: ``[{"x": [0.1, 0.2], "y": 1}, …]``."""
        self._samples = samples
        self._specs: dict[str, Spec] = {name: spec for name, (spec, _) in columns(samples).items()}
        self._arrays: dict[str, Array] = {}
        self._count: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self._specs)

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Every sample as it is stored; in a task, it is read and parsed at each use."""
        return self._samples

    def __len__(self) -> int:
        if self._count is None:
            shapes = [shape for _, shape in self._specs.values()]
            self._count = shapes[0][0] if shapes else len(self.samples)
        return self._count

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __getitem__(self, name: str) -> Array:
        if not isinstance(name, str):  # also where a program iterates
            raise TensorError(
                "the data is columns, not rows: data.x and data['x'] are arrays with a row a sample; data.samples has each sample as "
                "it is stored"
            )
        if name not in self._specs:
            known = ", ".join(self._specs) or "none"
            raise TensorError(f"the data has no column {name!r} of numbers; there are: {known}")
        if name not in self._arrays:
            self._arrays[name] = self._open(name)
        return self._arrays[name]

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def _open(self, name: str) -> Array:
        return array([sample[name] for sample in self._samples], self._specs[name][0])


def batches(
    data: Mapping[str, Array] | Data,
    size: int,
    seed: int | str | Random,
    columns: Sequence[str] = ("x", "y"),
    *,
    drop_last: bool = False,
) -> Iterator[tuple[Array, ...]]:
    """An epoch: the rows of some columns in random order, a batch at a time.

    Args:
        data: a task's data, or arrays by name.
        size: rows of a batch.
        seed: of the order, or a stream (``pt.random(ctx.seed)``), which gives each epoch another one.
        columns: which ones, in the order of each batch's arrays.
        drop_last: leave out the rows that are too few for a last batch: a smaller one is recorded by itself under ``jit``.

    Raises:
        TensorError: There is no such column, or the columns have not as many rows.
    """
    if type(size) is not int or size < 1:
        raise TensorError(f"batches: a batch has 1 row or more, not {size!r:.40}")
    arrays = [data[name] for name in columns]
    count = len(arrays[0]) if arrays else 0
    if any(len(array) != count for array in arrays):
        raise TensorError(
            f"batches: columns have {', '.join(str(len(array)) for array in arrays)} rows, and need as many each"
        )
    order = (seed if isinstance(seed, Random) else random(seed)).permutation(count)
    for at in range(0, count - size + 1 if drop_last else count, size):
        rows = order[at : at + size]
        yield tuple(array[rows] for array in arrays)


class TaskData(Data):
    """A task's data, of which only what is used is opened."""

    def __init__(self, specs: dict[str, Spec], file: Path) -> None:
        """Args: specs: of the columns that the machine has; file: the data as JSON."""
        super().__init__([])
        self._specs = specs
        self._file = file

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Every sample as it is stored; read and parsed at each use."""
        return cast("Sequence[Mapping[str, Any]]", json.loads(self._file.read_text())["data"])

    def _open(self, name: str) -> Array:
        return cast("Array", given(open_tensor("data", name, self._specs[name])))
