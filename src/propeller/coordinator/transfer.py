"""How an update came: in how many bytes, and how many compression saved."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from propeller.fl.compression import Description

NONE = "none"
"""The compression of an update that has none."""


@dataclass(frozen=True)
class Transfer:
    """How an update came.

    Attributes:
        bytes: of the body.
        uncompressed_bytes: that it would have had without compression, as its device says where numbers were changed.
        compression: what was done to it, in a few words, as ``top_k + int8 + zstd``.
        error: the norm of what is missing beside that of what was to be sent, as its device measured it; ``None``: nothing was
            left out, or it is not known.
    """

    bytes: int
    uncompressed_bytes: int
    compression: str = NONE
    error: float | None = None

    def with_coding(self, coding: str | None, size: int) -> "Transfer":
        """It, of a body that came in ``size`` bytes with a content coding, or without."""
        if coding is None:
            return replace(self, bytes=size)
        stages = coding if self.compression == NONE else f"{self.compression} + {coding}"
        return replace(self, bytes=size, compression=stages)

    def to_json(self) -> dict[str, Any]:
        """What is told of it."""
        return {
            "bytes": self.bytes,
            "uncompressed_bytes": self.uncompressed_bytes,
            "compression": self.compression,
            **({} if self.error is None else {"compression_error": self.error}),
        }


def transfer_of(size: int, description: Description | None) -> Transfer:
    """How an update of ``size`` bytes came that has no content coding; ``description`` of its compression, if it has any."""
    if description is None:
        return Transfer(size, size)
    return Transfer(size, description.uncompressed, description.stages, description.error)


def total_of(transfers: Iterable[Transfer | None]) -> dict[str, int]:
    """The bytes that came in a round, and those that were saved."""
    known = [each for each in transfers if each is not None]
    received = sum(each.bytes for each in known)
    return {"bytes": received, "bytes_saved": sum(each.uncompressed_bytes for each in known) - received}
