"""Building programs: from a Python script to a Wasm component."""

from propeller.wasm.build.python import BuildError, BuildResult, build

__all__ = ["BuildError", "BuildResult", "build"]
