"""Delivery of programs to proplets: topics ``registry/proplet`` (requests) and ``registry/server`` (answers)."""

import base64
import binascii
from typing import Annotated, Self

from pydantic import Field, model_validator

from propeller.protocol.ids import Id
from propeller.protocol.requirements import Requirements
from propeller.protocol.wire import MalformedMessageError, Message

WASM_MAGIC = b"\0asm"
"""The first bytes of every Wasm program."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
"""``sha256:`` and 64 hexadecimal digits."""


class ProgramRequest(Message):
    """A proplet asks for a program.

    S sends ``app_name`` alone on the shared topic, and reads chunks from the shared topic. A directed proplet asks on its
    own topic: it first gets a ``ResolvedProgram``, also on a topic of its own; if it lacks the bytes it asks again with
    ``digest`` set and reads chunks from the topic of that digest. ``missing`` lists the chunk numbers that it still needs
    (absent: all).
    """

    app_name: str = Field(min_length=1, max_length=512)
    proplet_id: Id | None = None
    digest: Digest | None = None
    missing: list[Annotated[int, Field(ge=0)]] | None = None
    signatures: bool | None = None
    """Whether the answer is to have the artifact's manifest and signatures, as the proplet verifies them."""


class ProgramSignature(Message):
    """A signature of an artifact in cosign's format: what was signed, and the signature; both in base64."""

    payload: str
    value: str


class ResolvedProgram(Message):
    """The proxy's answer to one proplet: what the reference resolves to now, or why it cannot be fetched."""

    app_name: str
    digest: Digest | None = None
    """Of the program."""
    reference: str | None = None
    """By digest: what ``app_name`` stands for, for good."""
    size: int | None = None
    total_chunks: int | None = None
    functions: list[str] | None = None
    """Those that the artifact says the program has; ``None`` if it does not say."""
    requirements: Requirements | None = None
    """Of a native program: what its artifact says it requires; ``None`` for others."""
    manifest: str | None = None
    """The artifact's manifest in base64, which names the program by its digest, where signatures were asked for."""
    signatures: list[ProgramSignature] | None = None
    error: str | None = None


class ProgramChunk(Message):
    """A part of a program. ``digest`` and ``size`` are of the whole program, absent from S proxies.

    An ``error`` ends a request and carries no part: an S proplet cannot read it and drops it, instead of counting it
    among the chunks.
    """

    app_name: str
    chunk_idx: Annotated[int, Field(ge=0)] = 0
    total_chunks: Annotated[int, Field(ge=0)] = 0
    data: str = ""
    digest: Digest | None = None
    size: int | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _is_a_part_or_an_error(self) -> Self:
        if not self.error and not (self.data and self.chunk_idx < self.total_chunks):
            raise ValueError("a chunk needs data, and a chunk_idx below its total_chunks")
        return self

    def encode(self) -> bytes:
        """The part as JSON, or the error alone."""
        part = {"chunk_idx", "total_chunks", "data"} if self.error else None
        return self.model_dump_json(exclude_none=True, exclude=part).encode()

    def payload(self) -> bytes:
        """The bytes of the part.

        Raises:
            MalformedMessageError: ``data`` is not base64.
        """
        try:
            return base64.b64decode(self.data, validate=True)
        except binascii.Error:
            raise MalformedMessageError("data: not valid base64") from None
