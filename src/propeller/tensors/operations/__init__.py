"""What there is to do with arrays: every operation by its name, and what it yields.

The one definition that programs, the sandbox's host and the machine in plain Python share: a program meets a wrong shape on the
line that made it, and the host checks the same rule again before it takes memory.
"""

from collections.abc import Sequence
from typing import Any

from propeller.tensors.operations import (
    arrangement,
    drawing,
    elementwise,
    indexing,
    ordering,
    real_functions,
    reductions,
    windows,
)
from propeller.tensors.operations.operation import (
    Call,
    CompoundCall,
    Gradient,
    Kernel,
    KernelFactory,
    Operation,
    OperationCall,
    Record,
)
from propeller.tensors.shapes import CARRIED, MAX_RANK, Spec, TensorError, elements

OPERATIONS = {
    operation.name: operation
    for module in (elementwise, real_functions, reductions, arrangement, drawing, indexing, ordering, windows)
    for operation in module.OPERATIONS
}

_MAX_ELEMENTS = 1 << 40


def infer(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    """The spec of an operation's result.

    Args:
        name: One of ``OPERATIONS``.
        specs: Of its operands.
        params: What else it takes; see ``Operation.params`` of each.

    Raises:
        TensorError: There is no such operation, or it does not take these.
    """
    operation = OPERATIONS.get(name)
    if operation is None:
        raise TensorError(f"there is no operation {name!r}")
    count = operation.operands
    if count is not None and len(specs) != count:
        raise TensorError(f"{name} takes {count} operands, got {len(specs)}")
    for dtype, _ in specs:
        if dtype in CARRIED and name != "cast":
            holds = ", which holds numbers below 2**63" if dtype == "uint64" else ""
            raise TensorError(
                f"{name}: an array of {dtype} is only carried; to compute with it write "
                f"x.astype({CARRIED[dtype]!r}){holds}"
            )
    spec: Spec = operation.infer(name, specs, params)
    shape = spec[1]
    if len(shape) > MAX_RANK:
        raise TensorError(f"{name}: {len(shape)} dimensions; at most {MAX_RANK}")
    if elements(shape) > _MAX_ELEMENTS:
        raise TensorError(f"{name}: a result of shape {list(shape)} is too large")
    return spec


def documentation() -> str:
    """The operations as docs/tensors.md lists them: the rows of a Markdown table."""
    nothing = "\N{EN DASH}"
    rows = []
    for each in OPERATIONS.values():
        count = "any" if each.operands is None else each.operands
        rows.append(f"| `{each.name}` | {count} | {each.params or nothing} | {each.doc} |")
    return "\n".join(rows)


__all__ = [
    "OPERATIONS",
    "Call",
    "CompoundCall",
    "Gradient",
    "Kernel",
    "KernelFactory",
    "Operation",
    "OperationCall",
    "Record",
    "documentation",
    "infer",
]
