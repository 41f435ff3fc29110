"""Programs in C: each is compiled once for each state of its source, and kept for later runs."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "c-programs"


def compiled(source: str) -> Path:
    """The program of a source; without the compiler the test is skipped. A first compilation of all takes about 10 s."""
    pytest.importorskip("ziglang")
    CACHE.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    target, script = CACHE / f"{name}.wasm", CACHE / f"{name}.c"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.exists():
            script.write_text(source)
            made = target.with_suffix(".new")
            subprocess.run(
                [
                    *(sys.executable, "-m", "ziglang", "cc", "--target=wasm32-wasi", "-Os", "-s"),
                    *("-o", str(made), str(script)),
                ],
                check=True,
            )
            made.rename(target)
    return target
