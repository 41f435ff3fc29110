"""Arrays of the libraries that native programs use: they are given NumPy's, and give back these, ``torch.Tensor`` or what else has ``__array__``.

In every other program ``given`` and ``taken`` leave everything as it is.
"""

from typing import Any

from propeller.tensors import session
from propeller.tensors.array import Array
from propeller.tensors.literals import as_numpy

_machine: Any = None


def use_numpy(machine: Any) -> None:
    """From here on programs of this process have NumPy's arrays; ``machine`` is the session's, and does its work in this process."""
    global _machine  # noqa: PLW0603 - as the process does one task
    _machine = machine


def given(value: Any) -> Any:
    """What a program is given for one of our arrays: a copy that it may change."""
    if _machine is None or not isinstance(value, Array):
        return value
    session.current().main.flush()
    return _machine.value(value.handle).copy()


def taken(value: Any) -> Any:
    """One of our arrays for what a program gave back, if it is an array of a library.

    Raises:
        TensorError: it has no numbers.
    """
    if not is_foreign(value):
        return value
    if hasattr(value, "detach"):  # PyTorch's, which may have a gradient, and be on another device
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has none
            value = value.float()
    import numpy as np

    found, spec = as_numpy(np.asarray(value))
    main = session.current().main
    array = Array(main, main.new_handle(), spec)
    _machine.put(array.handle, found, spec)
    return array


def is_foreign(value: Any) -> bool:
    """Whether a value is an array of a library, in a program that may have these."""
    return _machine is not None and not isinstance(value, Array) and hasattr(value, "__array__")


def like(value: Any, other: Any) -> Any:
    """A value to compute with beside another one: PyTorch takes its own tensors alone."""
    return other.new_tensor(value) if hasattr(other, "new_tensor") else value
