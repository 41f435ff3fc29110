"""Building programs: from a Python script to a Wasm component."""

from propeller.wasm.build.python import BuildError, Built, build

__all__ = ["BuildError", "Built", "build"]
