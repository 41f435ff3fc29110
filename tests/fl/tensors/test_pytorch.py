"""State dicts of PyTorch, read without it: what is read, and what a file of somebody else's cannot do."""

import contextlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.tensors import TensorError, from_safetensors
from propeller.fl.tensors.pytorch import from_pytorch
from propeller.torch import load, save

FILE = Path(__file__).parents[2] / "program" / "pytorch" / "net.pt"


def archive(value: Any, *, name: str = "net/data.pkl") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(name, pickle.dumps(value))
    return made.getvalue()


class Calls:
    """What a hostile pickle is: something to be called when it is read."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def test_a_file_of_pytorch_is_read() -> None:
    tensors, metadata = from_pytorch(FILE.read_bytes())
    assert metadata == {}
    assert {name: (each.dtype.name, each.shape) for name, each in tensors.items()} == {
        "conv1.weight": ("float32", (2, 1, 3, 3)),
        "conv1.bias": ("float32", (2,)),
        "conv2.weight": ("float32", (3, 2, 2, 2)),
        "conv2.bias": ("float32", (3,)),
        "fc.weight": ("float32", (4, 12)),
        "fc.bias": ("float32", (4,)),
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a state_dict as torch.save writes it"),
        (b"PK\x03\x04", "not a state_dict"),
        (archive({}, name="net/other"), "there is no data.pkl"),
        (archive({}), "the file holds a dict; save net.state_dict"),
        (archive(OrderedDict(a=1)), "'a' is no tensor; save net.state_dict"),
        (archive({"epoch": 3, "model": {"w": 1}}), r"this file has others under 'model'"),
        (archive(Calls(eval, "1+1")), "builtins.eval, which is no tensor"),
        (archive(Calls(print, "read")), "builtins.print, which is no tensor"),
        (archive(np.ones(3)), "which is no tensor"),
    ],
)
def test_what_is_none_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        from_pytorch(content)


@given(st.data())
def test_a_damaged_file_is_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(FILE.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TensorError):
        from_pytorch(bytes(content))


def test_what_is_saved_for_a_model_is_safetensors(tmp_path: Path) -> None:
    tensors = from_pytorch(FILE.read_bytes())[0]

    class Tensor:
        """As PyTorch's: it gives its numbers only where it is detached."""

        def __init__(self, array: Any) -> None:
            self.array = array

        def detach(self) -> "Tensor":
            return self

        def cpu(self) -> Any:
            return self.array

    save({name: Tensor(each) for name, each in tensors.items()}, tmp_path / "net.safetensors")
    again = from_safetensors((tmp_path / "net.safetensors").read_bytes())[0]
    assert {name: each.tolist() for name, each in again.items()} == {
        name: each.tolist() for name, each in tensors.items()
    }


def test_without_pytorch_there_are_no_tensors_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(Exception, match="which is not installed here"):
        load({"w": np.ones(2)})
