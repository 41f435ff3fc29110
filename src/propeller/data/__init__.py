"""What is shipped with the package: a program with its source, and the demo's records."""

import sysconfig
from importlib.resources import as_file, files
from pathlib import Path


def program_path(name: str) -> Path:
    """The built Wasm file of a program in ``programs/``, by its name (``logreg``).

    Raises:
        FileNotFoundError: no program of that name is shipped.
    """
    with as_file(files(__name__) / f"{name}.wasm") as path:
        if not path.is_file():
            raise FileNotFoundError(f"no program {name!r} is shipped")
        return path


def included_program(name: str) -> Path | None:
    """The script of an included program, ``propeller/NAME.py``; ``None`` if there is none of that name."""
    folder, _, script = name.rpartition("/")
    if folder != "propeller" or not script.endswith(".py"):
        return None
    with as_file(files(__name__) / "programs" / script) as path:
        return path if path.is_file() else None


def program_source(name: str) -> Path:
    """The C source of a shipped program: in this checkout of the repository, else where an installation puts it."""
    source = Path(f"{name}_c") / f"{name}.c"
    checkout = Path("programs") / source
    return (
        checkout if checkout.is_file() else Path(sysconfig.get_path("data")) / "share" / "propeller" / source
    )
