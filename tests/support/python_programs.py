"""Programs in Python: each is built once for each state of its source, and kept for later runs."""

import fcntl
import hashlib
from pathlib import Path

from propeller.wasm.build import build

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "programs" / "python"
CACHE_HOME = ROOT / ".pytest_cache" / "python-programs"
"""As ``XDG_CACHE_HOME`` of commands, it lets them share what is built, and compiled, here."""


def built(script: Path, *, host_tensors: bool = True) -> Path:
    """The program of a script; a first build takes about 10 s, and one of known content none."""
    kept = CACHE_HOME / "propeller" / "programs"
    kept.mkdir(parents=True, exist_ok=True)
    # By content too: two states of a script may be wanted at once.
    state = f"{script.resolve()}\0{host_tensors}\0{script.read_text()}"
    target = CACHE_HOME / f"{script.stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.wasm"
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        build(script, target, host_tensors=host_tensors, cache=kept)
    return target
