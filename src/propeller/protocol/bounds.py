"""How large the numbers of one device may be: in an experiment as fields of ``update``, of one round as its ``update``."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from propeller.metrics import MAX_METRIC_NAME, MAX_METRICS
from propeller.protocol.strict import StrictMessage

DEFAULT_MAX_SAMPLES = 10**9
"""Of an update that says how many samples it is from: no device trains on more of them in a round."""

_MOST = 2**53 - 1

_Bound = Annotated[float, Field(allow_inf_nan=False)]


def _check_ranges(ranges: dict[str, list[float]]) -> dict[str, list[float]]:
    for name, (low, high) in ranges.items():
        if low > high:
            raise ValueError(f"{name[:80]!r}: {low:g} is more than {high:g}; give the smaller one first")
    return ranges


class UpdateBounds(StrictMessage):
    """What the numbers of an update may be, so that no device counts for more than it should.

    Attributes:
        max_samples: the most samples that it may say it is from; more is refused.
        max_steps: likewise, of local optimizer steps.
        max_share: the largest part of all samples of a round that one device counts for; more does not count. Default: 1.
        max_norm: the largest Euclidean norm of its difference to the base model; more is refused. Default: any.
        metric_ranges: for metrics, the smallest and the largest value; others are refused. Default: any.
    """

    max_samples: Annotated[int, Field(ge=1, le=_MOST)] = DEFAULT_MAX_SAMPLES
    max_steps: Annotated[int, Field(ge=1, le=_MOST)] = DEFAULT_MAX_SAMPLES
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    metric_ranges: (
        Annotated[
            dict[
                Annotated[str, Field(min_length=1, max_length=MAX_METRIC_NAME)],
                Annotated[list[_Bound], Field(min_length=2, max_length=2)],
            ],
            Field(max_length=MAX_METRICS),
            AfterValidator(_check_ranges),
        ]
        | None
    ) = None

    @property
    def bounds(self) -> "UpdateBounds":
        """These fields alone, of a message that has further ones."""
        return UpdateBounds(**{name: getattr(self, name) for name in UpdateBounds.model_fields})

    def given(self) -> dict[str, Any] | None:
        """The fields that are not at their defaults; ``None`` if there is none."""
        return self.bounds.model_dump(mode="json", exclude_defaults=True) or None


DEFAULT_BOUNDS = UpdateBounds()
"""Of a round that says nothing else."""
