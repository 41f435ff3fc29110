"""Values as a person has them at hand, NumPy's among them, as they go to a stack and come back."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propeller.errors import InvalidError
from propeller.protocol import finite
from propeller.protocol.finite import MUST_BE_FINITE, find_number, format_path

if TYPE_CHECKING:
    import numpy as np

SAFETENSORS = "application/vnd.safetensors"

_SCALARS = frozenset({bool, int, float, str, type(None)})


def plain(value: Any, field: str) -> Any:
    """Plain Python values of what JSON can express: NumPy's scalars and arrays become numbers and lists, any mapping a dict.

    Args:
        value: what a person gave.
        field: what errors call it.

    Raises:
        InvalidError: something is NaN, infinite, or nothing that JSON has; the text names it by its path.
    """
    converted = _plain(value, (field,))
    found = find_number(converted, (field,))
    if found is not None:
        raise InvalidError(f"{format_path(found)}: {MUST_BE_FINITE}")
    return converted


def plain_dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A data set as JSON has it.

    Raises:
        InvalidError: it is none, or something in it cannot be sent.
    """
    if not isinstance(dataset, Mapping):
        raise InvalidError(
            f'dataset: {type(dataset).__name__} is no data set; give a mapping, as {{"data": […]}}'
        )
    return {name: plain(one, name) for name, one in dataset.items()}


def encode_model(model: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """A model as safetensors: arrays keep their dtypes, numbers and nested lists become float64, true and false BOOL.

    ``metadata`` is that of the document.

    Raises:
        InvalidError: a tensor is none, or holds NaN or an infinity; the text names it.
    """
    import numpy as np

    from propeller.fl.tensors import TensorError, from_json, to_safetensors

    if not isinstance(model, Mapping):
        raise InvalidError(f"model: {type(model).__name__} is no mapping of names to arrays")
    tensors = {}
    try:
        for name, value in model.items():
            if hasattr(value, "__array__"):
                tensors[name] = np.asarray(value)
            else:
                tensors |= from_json({name: _plain(value, ("model", str(name)))})
        return to_safetensors(tensors, metadata)
    except TensorError as error:
        raise InvalidError(f"model: {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:  # of __array__, which may be anybody's
        raise InvalidError(f"model: tensor {str(name)[:80]!r}: {error}") from None


def decode_model(content: bytes) -> "dict[str, np.ndarray[Any, Any]]":
    """The arrays of a safetensors document, which can be changed."""
    from propeller.fl.tensors import from_safetensors

    return dict(from_safetensors(bytearray(content))[0])


def read_npz(file: Path) -> "dict[str, np.ndarray[Any, Any]]":
    """A model from an ``.npz`` file.

    Raises:
        InvalidError: it is none; the text names the tensor where there is one.
        OSError: it cannot be read.
    """
    from propeller.fl.tensors import TensorError
    from propeller.fl.tensors.npz import from_npz

    try:
        return dict(from_npz(file.read_bytes())[0])
    except TensorError as error:
        raise InvalidError(f"{file}: {error}") from None


def read_dataset(path: str | Path, *, label: str | None = None) -> dict[str, Any]:
    """A data set for ``Experiment.data`` and ``put_dataset``, from a file or folder as ``propeller join --data`` takes it.

    Args:
        path: CSV, JSON, npz, safetensors or Parquet; or a folder of such files of one kind.
        label: of a table, the column with labels; by default one that is called y, label, target or class.

    Raises:
        InvalidError: it cannot be read; the text names the file, the sample and the column, and what to do.
    """
    from propeller.samples.device_data import read_device_data

    return read_device_data(Path(path), label).document()


def same_model(
    one: "Mapping[str, np.ndarray[Any, Any]]", other: "Mapping[str, np.ndarray[Any, Any]]"
) -> bool:
    """Whether two models have the same tensors, number by number."""
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype
        and value.shape == other[name].shape
        and bool((value == other[name]).all())
        for name, value in one.items()
    )


def _plain(value: Any, path: finite.Path) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidError(f"{format_path(path)}: {key!r:.80} is no name; names are text")
        return {str(key): _plain(one, (*path, key)) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        if set(map(type, value)) <= _SCALARS:
            return list(value)
        return [_plain(one, (*path, at)) for at, one in enumerate(value)]
    for kind in (str, int, float):  # NumPy's float64 and text, enumerations
        if isinstance(value, kind):
            return kind(value)
    listed = value.tolist() if hasattr(value, "tolist") else value
    if type(listed) is type(value):
        raise InvalidError(
            f"{format_path(path)}: {type(value).__name__} cannot be sent; use numbers, text, lists and mappings"
        )
    return _plain(listed, path)
