"""Safetensors documents on their way to the disk: a model need not fit into memory."""

from collections.abc import Callable
from pathlib import Path

from propeller.fl.tensors import TensorError
from propeller.fl.tensors.safetensors import PREFIX, header_length, read_header
from propeller.process.files import Buffer, DurableFile
from propeller.store.documents import BLOCK_BYTES, Document
from propeller.tensors.limits import check_count
from propeller.tensors.safetensors import Header, encode_header


class Upload(DurableFile):
    """A safetensors document on its way to the disk: its pieces are written as they come, with metadata of ours.

    Attributes:
        digest: of its content, once it is complete.
        metadata: what is written with it, once the header came.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Callable[[dict[str, str]], dict[str, str]],
        digest_field: str,
        *,
        least_tensors: int = 1,
    ) -> None:
        """Begin one.

        Args:
            folder: where it will be.
            metadata: gives what is written instead of the metadata that came; it may refuse that.
            digest_field: the field of the metadata that has the digest.
            least_tensors: how many it must have.
        """
        super().__init__(folder, "upload")
        self.digest = ""
        self.metadata: dict[str, str] = {}
        self._metadata_of, self._digest_field, self._least = metadata, digest_field, least_tensors
        self._start = bytearray()
        self._header: Header | None = None
        self._left = 0

    def write(self, piece: Buffer) -> None:
        """Take the next piece, of any size.

        Raises:
            TensorError: the header is malformed, or more comes than it says.
            InvalidError: the metadata cannot be taken.
        """
        if self._header is None:
            self._start += piece
            if len(self._start) < PREFIX or len(self._start) < PREFIX + header_length(self._start):
                return
            piece = self._read_start()
        if len(piece) > self._left:
            raise TensorError("the safetensors document is followed by other bytes")
        self._left -= len(piece)
        self.stream.write(piece)

    def finish(self) -> None:
        """Check what came.

        Raises:
            TensorError: it is cut off, or a number is NaN or infinite.
        """
        if self._header is None or self._left:
            raise TensorError("the safetensors document is cut off")
        self.stream.flush()
        self.digest = Document(self.stream).check()
        self.metadata[self._digest_field] = self.digest
        self.stream.seek(0)
        self.stream.write(encode_header(self._header, self.metadata))
        if self._header.length > BLOCK_BYTES:
            self.sync()  # what takes long, before the folder is locked

    def _read_start(self) -> Buffer:
        """Write our header; gives the numbers that came with theirs."""
        header = read_header(self._start)
        check_count(len(header.entries), self._least)
        # The digest is known at the end: until then its place is kept.
        self.metadata = {**self._metadata_of(header.metadata), self._digest_field: "0" * 64}
        self.stream.write(encode_header(header, self.metadata))
        self._header, self._left = header, header.length - header.start
        rest = memoryview(self._start)[header.start :]
        self._start = bytearray()
        return rest
