"""Updates that are too large for memory: received into a file, checked and written by blocks in the form in which they are stored."""

import asyncio
import contextlib
import hashlib
import math
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from propeller.coordinator.content_coding import decompress_stream
from propeller.coordinator.settings import GIB
from propeller.coordinator.transfer import transfer_of
from propeller.coordinator.updates import ReceivedUpdate, UpdateDocument, check_fits, decode_update
from propeller.errors import InvalidError, UnavailableError, UnprocessableError
from propeller.fl.compression import CompressedUpdate
from propeller.fl.tensors import (
    DTYPES,
    SAFETENSORS,
    Array,
    Specs,
    TensorError,
    TensorSpec,
    check_ranges,
    from_safetensors,
)
from propeller.fl.tensors.base import check_array
from propeller.fl.tensors.dtypes import without_loss
from propeller.fl.tensors.safetensors import PREFIX, header_length
from propeller.process.files import DurableFile
from propeller.process.opening import open_in_thread
from propeller.protocol.models import LARGE_BYTES
from propeller.store.documents import BLOCK_BYTES, Document
from propeller.tensors.limits import check_count
from propeller.tensors.safetensors import write_header

Admit = Callable[[ReceivedUpdate], Awaitable[None]]
"""Raises why an update would be refused, from its header."""


@dataclass(frozen=True)
class LargeUpdate(ReceivedUpdate):
    """An update in a file.

    Attributes:
        document: the file; it is gone when the request has been answered.
    """

    document: Document = field(kw_only=True)


class LargeUpdates:
    """Receives large updates into files without names, which the system frees however the process ends."""

    def __init__(self, folder: Path) -> None:
        """Have the files in ``folder``, made when it is needed."""
        self._folder = folder

    @contextlib.asynccontextmanager
    async def receive(
        self,
        pieces: AsyncIterable[bytes],
        admit: Admit,
        *,
        coding: str | None = None,
        max_bytes: int = 4 * GIB,
    ) -> AsyncIterator[LargeUpdate]:
        """An update in safetensors for the length of the block; once its header has come, ``admit`` may refuse it.

        Args:
            pieces: the body.
            admit: is told of the header.
            coding: ``zstd`` if the body is compressed by it.
            max_bytes: the longest body without content coding.

        Raises:
            InvalidError: it is malformed.
            LongContentError: it is too long without its content coding.
            UnavailableError: there is no room on the disk.
        """
        with contextlib.ExitStack() as stack:
            with self.errors():
                file = stack.enter_context(await open_in_thread(self._open_file))
            gathered, header, body = bytearray(), None, _Counted(pieces)
            async for piece in (
                body.pieces() if coding is None else decompress_stream(body.pieces(), max_bytes)
            ):
                gathered += piece
                if header is None:
                    if _lacks_header(gathered):
                        continue
                    header = await decode_update(SAFETENSORS, bytes(gathered))
                    await admit(header)
                if len(gathered) >= BLOCK_BYTES:
                    await self._write(file, gathered)
                    gathered = bytearray()
            if header is None:
                raise InvalidError("update: the safetensors document is cut off")
            await self._write(file, gathered)
            try:
                document = Document(file)
                check_count(len(document.header.entries))
            except TensorError as error:
                raise InvalidError(f"update: {error}") from None
            length = document.header.length
            sent = header.sent and replace(
                header.sent, read=lambda: from_safetensors(document.map(), finite=False)[0]
            )
            transfer = transfer_of(length, None if sent is None else sent.description).with_coding(
                coding, body.size
            )
            yield LargeUpdate(header.header, header.read_tensors, length, transfer, sent, document=document)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises the disk's errors with the setting that a person would change."""
        try:
            yield
        except OSError as error:
            raise UnavailableError(
                f"the folder {self._folder} for large updates cannot be used: {error.strerror}; free some of its disk, or set "
                "COORDINATOR_STATE"
            ) from error

    async def _write(self, file: BinaryIO, content: bytearray) -> None:
        with self.errors():
            await asyncio.to_thread(file.write, content)

    def _open_file(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)


class _Counted:
    """The pieces of a body, and how many bytes they were so far."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces, self.size = pieces, 0

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            self.size += len(piece)
            yield piece


def stands_for_large(update: ReceivedUpdate, base: Specs) -> bool:
    """Whether a compressed update is large without its compression, however small it came."""
    return update.sent is not None and model_bytes(base) > LARGE_BYTES


def model_bytes(specs: Specs) -> int:
    """How many bytes all tensors have."""
    return sum(DTYPES[spec.dtype].itemsize * math.prod(spec.shape) for spec in specs.values())


def write_document(update: ReceivedUpdate, base: Specs, target: DurableFile) -> UpdateDocument:
    """As ``make_document``, by blocks and into a file: the same document and digest. Of a compressed update a tensor is in memory.

    Raises:
        InvalidError: a number is not finite, or a truth value is none.
        UnprocessableError: it does not fit the base model; the text names the tensor.
        OSError: it cannot be written.
    """
    header = update.header
    try:
        document = _numbers(update, base)
        check_fits(document.specs, base)
        dtypes = {name: _stored_dtype(document, name, spec, header.kind) for name, spec in base.items()}
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
    specs = {name: TensorSpec(dtypes[name], document.specs[name].shape) for name in base}
    metadata = {
        "num_samples": str(header.num_samples),
        "proplet_id": header.proplet_id,
        "round_id": header.round_id,
    }
    head, order = write_header(specs, metadata)
    digest, size = hashlib.sha256(head), len(head)
    target.stream.write(head)
    try:
        for name in order:
            for block in document.blocks(name):
                check_array(name, block)
                numbers = block.astype(DTYPES[dtypes[name]], copy=False).view(np.uint8).data
                digest.update(numbers)
                size += len(numbers)
                target.stream.write(numbers)
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
    return UpdateDocument(digest.hexdigest(), target, size)


class _Decompressed:
    """A compressed update, as ``Document`` gives one that is not."""

    def __init__(self, update: CompressedUpdate) -> None:
        self._update, self.specs = update, update.specs

    def blocks(self, name: str) -> Iterator[Array]:
        yield self._update.read(name).reshape(-1)


def _numbers(update: ReceivedUpdate, base: Specs) -> "Document | _Decompressed":
    if update.sent is not None:
        return _Decompressed(CompressedUpdate(update.sent.read(), update.sent.description, base))
    if not isinstance(update, LargeUpdate):
        raise TypeError("an update in memory that is not compressed")
    return update.document


def _stored_dtype(document: "Document | _Decompressed", name: str, spec: TensorSpec, kind: str) -> str:
    """The dtype in which a tensor is stored: the base model's if it loses nothing by it, else its own.

    Raises:
        TensorError: a number is not finite.
        UnprocessableError: one is out of the base model's range.
    """
    own = document.specs[name].dtype
    if own == spec.dtype:
        return own
    fits = True
    for block in document.blocks(name):
        check_array(name, block)
        if kind == "weights":  # a difference of unsigned integers may be negative
            _check_range(name, block, spec)
        fits = fits and without_loss(block, DTYPES[spec.dtype]) is not None
    return spec.dtype if fits else own


def _check_range(name: str, block: Array, spec: TensorSpec) -> None:
    try:
        check_ranges({name: block}, {name: spec})
    except TensorError as error:
        raise UnprocessableError(f"update does not fit the base model: {error}") from None


def _lacks_header(start: bytearray) -> bool:
    """Whether more is to come before the header can be read.

    Raises:
        InvalidError: it cannot be one.
    """
    try:
        return len(start) < PREFIX or len(start) < PREFIX + header_length(start)
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
