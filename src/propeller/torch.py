"""Models to and from PyTorch: on the machine of whoever has PyTorch; devices need none.

net.load_state_dict(propeller.torch.load("v3.safetensors"))
propeller.torch.save(net.state_dict(), "first.safetensors")     # model.file of an experiment
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from propeller.errors import InvalidError
from propeller.fl.tensors import TensorError, from_safetensors, to_safetensors
from propeller.process.files import write_durably


def load(model: str | Path | Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """A model as a ``state_dict``: tensors of PyTorch by name.

    Args:
        model: a safetensors file, or arrays by name as ``client.model(version)`` gives them.

    Raises:
        InvalidError: PyTorch is not installed, or the file is no model.
    """
    try:
        import torch
    except ImportError:
        raise InvalidError(
            "propeller.torch.load makes tensors of PyTorch, which is not installed here"
        ) from None
    if isinstance(model, str | Path):
        try:
            model = from_safetensors(Path(model).read_bytes())[0]
        except OSError as error:
            raise InvalidError(f"{model}: {error.strerror}") from None
        except TensorError as error:
            raise InvalidError(f"{model}: {error}") from None
    # A copy, as what a document was read into cannot be written to.
    return OrderedDict((name, torch.as_tensor(array.copy())) for name, array in model.items())


def save(state_dict: Mapping[str, Any], file: str | Path) -> None:
    """Write a ``state_dict`` as safetensors: tensors of PyTorch, or anything else that has ``__array__``.

    Raises:
        InvalidError: something in it is no tensor, or of a dtype that NumPy has not (bfloat16: write ``.float()``).
    """
    import numpy as np

    arrays = {}
    for name, tensor in state_dict.items():
        try:
            arrays[name] = np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidError(f"{name}: {error}") from None
    try:
        content = to_safetensors(arrays)
    except TensorError as error:
        raise InvalidError(str(error)) from None
    write_durably(Path(file), content)
