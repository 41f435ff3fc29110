"""Build the programs that are shipped, from their sources: ``python programs/build.py [FOLDER]``.

Needs the ``ziglang`` wheel (in the dev extra), whose version decides the bytes; the default folder is the package's data.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "src" / "propeller" / "data"

_FLAGS = [
    "--target=wasm32-wasi",
    "-std=c11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffp-contract=off",  # the same sums on every compiler
    "-s",  # no names: smaller, and no path of the machine that built it
    "-Wl,-z,stack-size=262144",  # the default of 16 MiB would be taken from every proplet
]


def build_logreg(folder: Path) -> Path:
    """Compile ``logreg_c`` to ``logreg.wasm`` in ``folder``."""
    target = folder / "logreg.wasm"
    source = HERE / "logreg_c"
    with tempfile.TemporaryDirectory() as cache:
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *_FLAGS, "-o", str(target), "logreg.c", "json.c"],
            check=True,
            cwd=source,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": cache},
        )
    return target


if __name__ == "__main__":
    built = build_logreg(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
    print(f"{built}: {built.stat().st_size} bytes")
