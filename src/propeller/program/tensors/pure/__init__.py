"""Steps in plain Python, for runtimes without host tensors: correct, and slow."""

from propeller.program.tensors.pure.machine import PythonMachine

__all__ = ["PythonMachine"]
