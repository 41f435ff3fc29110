"""Each test begins with a machine of its own."""

from support.machines import machine, own_machine

__all__ = ["machine", "own_machine"]
