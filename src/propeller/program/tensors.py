"""Arrays for programs: NumPy's manner, done by the sandbox's host at NumPy's speed, or by plain Python where there is no such host.

    >>> from propeller.program import tensors as pt
    >>> x = pt.array([[1.0, 2.0], [3.0, 4.0]])
    >>> (x @ x.T).sum().item()
    52.0

Operations are recorded and cross to the host together, when a value is needed. ``jit`` records a whole function once.
"""

from typing import TYPE_CHECKING, Never

from propeller.tensors import (
    activations,
    arranging,
    attention,
    functions,
    gathering,
    hints,
    losses,
    normalisation,
    ordering,
    randomness,
    windows,
)
from propeller.tensors.activations import *  # noqa: F403 - what its __all__ names is public here
from propeller.tensors.arranging import *  # noqa: F403
from propeller.tensors.array import Array
from propeller.tensors.attention import *  # noqa: F403
from propeller.tensors.einsum import einsum
from propeller.tensors.functions import *  # noqa: F403
from propeller.tensors.gathering import *  # noqa: F403
from propeller.tensors.grad import grad, value_and_grad
from propeller.tensors.jit import jit
from propeller.tensors.losses import *  # noqa: F403
from propeller.tensors.normalisation import *  # noqa: F403
from propeller.tensors.ordering import *  # noqa: F403
from propeller.tensors.randomness import *  # noqa: F403
from propeller.tensors.scan import scan
from propeller.tensors.shapes import TensorError
from propeller.tensors.windows import *  # noqa: F403

# The methods as functions, too, and the dtypes by their names.
abs = Array.__abs__  # noqa: A001
all = Array.all  # noqa: A001
any = Array.any  # noqa: A001
argmax = Array.argmax
argmin = Array.argmin
clip = Array.clip
max = Array.max  # noqa: A001
mean = Array.mean
min = Array.min  # noqa: A001
reshape = Array.reshape
squeeze = Array.squeeze
std = Array.std
sum = Array.sum  # noqa: A001
transpose = Array.transpose
var = Array.var
bfloat16 = "bfloat16"
float16 = "float16"
float32 = "float32"
float64 = "float64"
int64 = "int64"
uint8 = "uint8"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Never:
        raise AttributeError(f"{__name__} has no {name!r}{hints.hint(name, globals())}")


__all__ = [
    "Array",
    "TensorError",
    "abs",
    "all",
    "any",
    "argmax",
    "argmin",
    "bfloat16",
    "clip",
    "einsum",
    "float16",
    "float32",
    "float64",
    "grad",
    "int64",
    "jit",
    "max",
    "mean",
    "min",
    "reshape",
    "scan",
    "squeeze",
    "std",
    "sum",
    "transpose",
    "uint8",
    "value_and_grad",
    "var",
]
__all__ += activations.__all__
__all__ += arranging.__all__
__all__ += attention.__all__
__all__ += functions.__all__
__all__ += gathering.__all__
__all__ += losses.__all__
__all__ += normalisation.__all__
__all__ += ordering.__all__
__all__ += randomness.__all__
__all__ += windows.__all__
