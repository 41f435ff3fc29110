"""What is shipped with the package: programs that are built, and the demo's records."""

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
