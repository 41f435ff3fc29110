"""What is done to the numbers of an update."""

from dataclasses import dataclass
from typing import Literal, get_args

ValueForm = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""How a number of a difference is sent."""

VALUE_FORMS: tuple[ValueForm, ...] = get_args(ValueForm)


@dataclass(frozen=True)
class Scheme:
    """How the floating-point tensors of an update are compressed; each stage is there or not, whatever the others are.

    Attributes:
        top_k: the part of the numbers that is sent, the largest ones; ``None``: all.
        values: the form of those that are.
        error_feedback: what was not sent, or was rounded away, is added to the next update.
    """

    top_k: float | None = None
    values: ValueForm = "float32"
    error_feedback: bool = False

    @property
    def is_lossy(self) -> bool:
        """Whether it changes numbers: if not, an update is sent as it is."""
        return self.top_k is not None or self.values != "float32"
