"""A program that is data: the modules of a layer, loaded into the shared Python runtime as if they were files beside it.

A layer has one of two forms. As it is written: a JSON object with the name of the ``script`` and the texts of ``modules`` by their names, which is
compiled, while it is built. As it is run: the same, with the code of each module compiled by this very Python, marshalled.
"""

import binascii
import contextvars
import importlib.machinery
import importlib.util
import json
import linecache
import marshal
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from propeller.program import command, registry

FILE, VARIABLE, IN_FILE = ".program", "PROPELLER_PROGRAM", "file"
"""A file in ``/in`` with the layer, and the variable that has it in base64 if it is short, or says that it is in the file."""

COMPILED_FILE = "program"
"""In ``/out``: the layer as it is run, of a task that is given it as it is written."""

Modules = Mapping[str, tuple[str, CodeType]]
"""Text and code by the modules' names."""


def run(root: Path = Path("/")) -> int:
    """Load the layer below ``root`` and do its task, or compile it; the exit code, with the reason as the last line of standard error."""
    try:
        layer = _given(root)
        script, modules = read(layer)
        load(script, modules)
        if _is_written(layer):
            (root / "out" / COMPILED_FILE).write_bytes(dump(script, modules))
            return 0
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the program does wrong where it is loaded
        command.explain(error)
        return 1
    return command.run(root)


def _given(root: Path) -> bytes:
    text = os.environ.pop(VARIABLE)
    return (root / "in" / FILE).read_bytes() if text == IN_FILE else binascii.a2b_base64(text)


def _is_written(layer: bytes) -> bool:
    return layer.startswith(b"{")


def read(layer: bytes) -> tuple[str, Modules]:
    """The name of a layer's script, and its modules.

    Raises:
        SyntaxError: one is not Python.
    """
    if not _is_written(layer):
        script, modules = marshal.loads(layer)  # noqa: S302 - as trusted as the code that it has
        return script, modules
    written = json.loads(layer)
    texts = written["modules"]
    return written["script"], {
        name: (text, compile(text, f"{name}.py", "exec", dont_inherit=True)) for name, text in texts.items()
    }


def dump(script: str, modules: Modules) -> bytes:
    """The form in which a layer is run."""
    content: Any = (script, dict(modules))
    return marshal.dumps(content)


def load(script: str, modules: Modules) -> None:
    """Load a script and what it imports.

    Raises:
        Exception: whatever they do wrong.
        LookupError: no function is marked.
    """
    sys.meta_path.insert(0, _Loader(modules))
    for name, (text, _code) in modules.items():  # for tracebacks
        linecache.cache[f"{name}.py"] = (len(text), None, text.splitlines(keepends=True), f"{name}.py")
    __import__(script)  # not by importlib, whose frame would be in tracebacks
    registry.check_registered()


def rehearse() -> None:
    """Load a small layer some times while the runtime is built, so that it starts practised (``rehearsal.py``)."""
    contextvars.copy_context().run(_rehearse)


def _rehearse() -> None:
    name = "propeller_rehearsal"
    written = json.dumps({"script": name, "modules": {name: _SCRIPT}}).encode()
    layer = dump(*read(written))
    for _ in range(_TIMES):
        registry.reset()
        os.environ[VARIABLE] = binascii.b2a_base64(layer, newline=False).decode()
        load(*read(_given(Path("rehearsal"))))
        del sys.meta_path[0], sys.modules[name], linecache.cache[f"{name}.py"]


_TIMES = 4
_SCRIPT = """
import json
from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt

def loss(model):
    return pt.square(model["w"]).mean()

@pt.jit
def step(model, lr):
    model["w"] -= lr * pt.grad(loss)(model)["w"]

@train
def fit(model, data, hyperparams, ctx):
    return Update(model, num_samples=len(data))

@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(num_samples=len(data), metrics={})
"""


class _Loader(Loader, MetaPathFinder):
    """Finds and loads the modules of a layer."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        return importlib.util.spec_from_loader(name, self, origin=f"{name}.py")

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> None:
        """As usual."""

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = f"{module.__name__}.py"
        exec(self._modules[module.__name__][1], module.__dict__)  # noqa: S102 - that is what a program is for

    def get_source(self, name: str) -> str:
        return self._modules[name][0]
