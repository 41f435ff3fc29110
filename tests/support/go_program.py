"""The Go program, built once for each state of its source and kept for later runs."""

import fcntl
import hashlib
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "programs" / "logreg_go"
KEPT = ROOT / ".pytest_cache" / "programs"
CACHE = KEPT / "cache"
"""As ``GOCACHE``: Go's own library is compiled once for all that build with ``-trimpath``, in some 10 s."""


def go_command() -> str:
    """The Go command. Skips where there is none."""
    try:
        return str(_builder().go())
    except FileNotFoundError as error:
        pytest.skip(str(error))


def build() -> Path:
    """The built program. Skips where there is no Go; a build takes about 10 s."""
    folder = KEPT / _fingerprint(go_command())
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "fl-client.wasm"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.exists():
            beside = folder / "new"
            beside.mkdir(exist_ok=True)
            _builder().build_logreg_go(beside, CACHE).rename(target)
    return target


def _fingerprint(go: str) -> str:
    """What the bytes follow from: the source, how it is built, and the compiler."""
    hashed = hashlib.sha256(subprocess.run([go, "version"], check=True, capture_output=True).stdout)
    for file in [ROOT / "programs" / "build.py", *sorted(SOURCE.glob("*.go")), SOURCE / "go.mod"]:
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:16]


def _builder() -> ModuleType:
    """``programs/build.py``, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("programs_build", ROOT / "programs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
