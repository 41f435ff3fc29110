"""Programs in Python: each is built once for each state of its source, and kept for later runs."""

import fcntl
import hashlib
from pathlib import Path

from propeller.process.files import write_durably
from propeller.wasm.build import build

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "programs" / "python"
TEMPLATE = ROOT / "src" / "propeller" / "cli" / "template" / "linear" / "train.py"
"""What ``propeller new`` gives: logistic regression."""
CACHE_HOME = ROOT / ".pytest_cache" / "python-programs"
"""As ``XDG_CACHE_HOME`` of commands, it lets them share what is built, and compiled, here."""
SANDBOX = CACHE_HOME / "propeller" / "sandbox"
COMPILED = SANDBOX / "programs"
"""As ``PROPLET_CACHE`` of a stack, it spares the compilation of what a test has compiled before."""

_TOGETHER = """
from propeller.program import evaluate, registry, train

import softmax
registry.reset()
import logreg
registry.reset()

@train
def fit(model, data, hyperparams, ctx):
    return {"softmax": softmax, "logreg": logreg}[hyperparams["which"]].fit(model, data, hyperparams, ctx)

@evaluate
def score(model, data, hyperparams, ctx):
    return {"softmax": softmax, "logreg": logreg}[hyperparams["which"]].score(model, data, hyperparams, ctx)
"""


def built(script: Path, *, standalone: bool = False, host_tensors: bool = True) -> Path:
    """The program of a script; the first of all makes the runtime in some 20 s, a standalone one takes 10 s, and one of known content none."""
    kept = CACHE_HOME / "propeller"
    kept.mkdir(parents=True, exist_ok=True)
    state = f"{script.name}\0{standalone}\0{host_tensors}\0{script.read_text()}"
    target = CACHE_HOME / f"{script.stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.wasm"
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        build(script, target, standalone=standalone, host_tensors=host_tensors, cache=kept)
    return target


def together() -> Path:
    """A script that has softmax and logistic regression beside it, and does what the hyperparameter ``which`` names."""
    folder = CACHE_HOME / "together"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("softmax", "logreg"):
        write_durably(folder / f"{name}.py", (SOURCES / f"{name}.py").read_bytes())
    script = folder / "together.py"
    write_durably(script, _TOGETHER.encode())
    return script
