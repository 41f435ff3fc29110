"""``propeller build``: a Python script becomes a program."""

import time
from pathlib import Path

from rich.console import Console

from propeller.process.run import StartError
from propeller.wasm.build import BuildError, build


def run_build(script: Path, output: Path | None, *, host_tensors: bool) -> None:
    """Build ``script``; print the file, its digest and size.

    Raises:
        StartError: with the Python error and its line.
    """
    target = output or script.with_suffix(".wasm")
    begun = time.monotonic()
    console = Console(stderr=True)
    try:
        with console.status(f"Building {target} (a first build takes ten seconds or so) …"):
            built = build(script, target, host_tensors=host_tensors)
    except BuildError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{error.filename or target}: {error.strerror}") from None
    took = "from the cache" if built.cached else f"{time.monotonic() - begun:.1f} s"
    print(f"Built {built.path} ({built.size / 1e6:.1f} MB, {took})\nDigest: {built.digest}")
