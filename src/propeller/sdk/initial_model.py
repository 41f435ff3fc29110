"""The model that an experiment begins with: of a file, or made by a script, whose function is marked with ``@initial_model``."""

import json
import subprocess
import sys
import tempfile
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from propeller.errors import InvalidError
from propeller.program import command
from propeller.program.native import AVAILABLE_MODULES, load_script
from propeller.program.registry import registered, result_of
from propeller.protocol.wire import MalformedMessageError, decode_trusted
from propeller.sdk.values import encode_model, read_npz

MODEL_FILES = "a .safetensors, .npz, .json or .pt file, or a script with @initial_model"

MODE = "initial_model"
_TIMEOUT_S = 600


def read_model(path: str | Path, hyperparams: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model for ``Experiment.model``, ``put_model`` and simulations, from a file as an experiment file's ``model.file`` names it.

    Args:
        path: safetensors, npz, JSON, what ``torch.save(net.state_dict(), …)`` wrote, or a script, which makes it with its ``@initial_model``.
        hyperparams: what a script's function is called with.

    Returns:
        Arrays of NumPy, or of JSON numbers and lists of them, by tensor name.

    Raises:
        InvalidError: it cannot be read, or is none; the text names the file and what to do.
    """
    from propeller.fl.tensors import TensorError, from_safetensors
    from propeller.fl.tensors.pytorch import from_pytorch

    file = Path(path)
    try:
        if file.suffix == ".py":
            return initial_model(file, hyperparams)
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            return dict(from_safetensors(content)[0])
        if file.suffix in {".pt", ".pth"}:
            return dict(from_pytorch(content)[0])
        if file.suffix == ".npz":
            return read_npz(file)
        return decode_trusted(content.removeprefix(BOM_UTF8))
    except OSError as error:
        raise InvalidError(f"{file}: {error.strerror}") from None
    except TensorError as error:
        raise InvalidError(f"{file}: {error}") from None
    except MalformedMessageError as error:
        more = "" if file.suffix == ".json" else f"; a model is {MODEL_FILES}"
        raise InvalidError(f"{file}: {error}{more}") from None


def initial_model(script: str | Path, hyperparams: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The model that a script's ``@initial_model`` makes, in a process of its own, as ``propeller try`` runs a script.

    Args:
        script: the script.
        hyperparams: what the function is called with.

    Returns:
        Arrays of NumPy by tensor name.

    Raises:
        InvalidError: the script cannot be loaded, marks no such function, or that fails; the text has its reason.
    """
    from propeller.fl.tensors import from_safetensors

    file = Path(script)
    if not file.is_file():
        raise InvalidError(f"{file}: there is no such file")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.safetensors"
        run = [
            sys.executable,
            "-P",
            "-m",
            __name__,
            str(file),
            str(target),
            json.dumps(dict(hyperparams or {})),
        ]
        try:
            done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - the user's own
        except subprocess.TimeoutExpired:
            raise InvalidError(f"{file}: @{MODE} has not made a model after {_TIMEOUT_S} s") from None
        if done.returncode != 0:
            raise InvalidError(f"{file}: no model to begin with: {_reason(done.stderr)}")
        return dict(from_safetensors(target.read_bytes())[0])


def _reason(told: str) -> str:
    last = (told.strip().splitlines() or ["it says nothing"])[-1]
    if "ModuleNotFoundError" in last and AVAILABLE_MODULES not in last:  # of a native program's script
        last += (
            f": @{MODE} is run by the Python of propeller, {sys.executable}: install it there, or save the model and name its file, "
            'as model.file = "net.pt"'
        )
    return last


def main(script: Path, target: Path, hyperparams: Mapping[str, Any]) -> int:
    """Load a script, and write the model that it makes; the exit code, with the reason as the last line of standard error."""
    with tempfile.TemporaryDirectory() as root:
        if not load_script(script, Path(root)):
            return 1
        try:
            function = registered(MODE)
            made = function(hyperparams)
            with result_of(function):
                if not isinstance(made, Mapping):
                    raise TypeError(f"@{MODE} returns arrays by name, not a {type(made).__name__}")  # noqa: TRY301
                target.write_bytes(encode_model(made))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the script does wrong
            command.explain(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
