"""Building programs: from a Python script to a Wasm component."""

from propeller.wasm.build.python import BuildResult, build
from propeller.wasm.build.sources import BuildError

__all__ = ["BuildError", "BuildResult", "build"]
