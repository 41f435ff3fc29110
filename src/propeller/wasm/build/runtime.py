"""The shared runtime of programs in Python: CPython with its standard library and the array language, one component, made once.

It is made again where this library or the tool has changed. The tool gives other bytes each time (its memory has hashes and addresses that
are drawn: https://github.com/bytecodealliance/componentize-py/issues/247), so a runtime is what its digest says, and is kept.
"""

import fcntl
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from propeller.process.files import write_durably
from propeller.wasm.build.componentize import FOLDER, componentize, what_makes_one
from propeller.wasm.runtimes import keep_runtime, runtime_file, runtimes_folder


@dataclass(frozen=True)
class Runtime:
    """A runtime: its file and digest."""

    path: Path
    digest: str


def python_runtime(folder: Path | None = None) -> Runtime:
    """The runtime of this version; it is made if it is not there, which takes about 20 s.

    Args:
        folder: where runtimes are kept (default: the user's cache folder).

    Raises:
        BuildError: componentize-py is missing, or fails.
    """
    folder = folder or runtimes_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = hashlib.sha256("\0\0".join(what_makes_one()).encode()).hexdigest()
    name = folder / f"{key}.digest"
    with (folder / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if name.is_file():
            digest = name.read_text().strip()
            if (path := runtime_file(folder, digest)) is not None:
                path.touch()  # the least recently used go first
                return Runtime(path, digest)
        with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as workspace:
            entry = (FOLDER / "runtime.py.in").read_text()
            library = {"propeller_library.py": (FOLDER / "library.py").read_text()}
            content = componentize(
                entry, library, Path(workspace), host_tensors=True, named="the Python runtime"
            )
        path, digest = keep_runtime(content, folder)
        write_durably(name, digest.encode())
        return Runtime(path, digest)
