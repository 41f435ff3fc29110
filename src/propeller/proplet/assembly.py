"""A program's chunks put together: in any order, each once, checked against what was announced. No I/O."""

from propeller.digests import digest_of
from propeller.proplet.errors import AssemblyError, ChunkError
from propeller.proplet.settings import LIMIT_SETTINGS
from propeller.protocol.programs import ProgramChunk

MAX_CHUNKS = 65536
"""The most chunks a program may come in."""


class Assembly:
    """The chunks of one program that have come.

    With ``digest``, ``size`` and ``total`` as the proxy announced them every chunk is checked against them. A proxy of
    absmach/propeller announces nothing: then the first chunk fixes what it says, and a chunk that contradicts what is
    there (another total, other bytes under the same number: the tag has moved) starts the assembly anew.
    """

    def __init__(
        self, max_bytes: int, *, digest: str | None = None, size: int | None = None, total: int | None = None
    ) -> None:
        """``max_bytes`` bounds what is kept.

        Raises:
            AssemblyError: what was announced is over a limit.
        """
        self._announced = digest, size, total
        self._digest, self._size, self._total = self._announced
        self._max_bytes, self._size_so_far = max_bytes, 0
        self._chunks: dict[int, bytes] = {}
        if size is not None and size > max_bytes:
            setting = LIMIT_SETTINGS["module_bytes"]
            raise AssemblyError(
                f"module_bytes: the program of {size} bytes is over the limit of {max_bytes} ({setting})"
            )
        if total is not None and not 0 < total <= MAX_CHUNKS:
            raise AssemblyError(f"total_chunks: {total} is not between 1 and {MAX_CHUNKS}")

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self._total is not None and len(self._chunks) == self._total

    @property
    def chunks(self) -> int:
        """How many chunks are there."""
        return len(self._chunks)

    def missing(self) -> list[int]:
        """The numbers of the chunks that are not there yet."""
        return [number for number in range(self._total or 0) if number not in self._chunks]

    def add(self, chunk: ProgramChunk) -> bool:
        """Add a chunk; whether it was new.

        Raises:
            ChunkError: it is of another program or total, not base64, or over a limit.
        """
        if chunk.total_chunks > MAX_CHUNKS:
            raise ChunkError(f"total_chunks: {chunk.total_chunks} is more than {MAX_CHUNKS}")
        try:
            data = chunk.payload()
        except ValueError as error:
            raise ChunkError(str(error)) from None
        if reason := self._contradiction(chunk, data):
            if self._announced[2] is not None:
                raise ChunkError(reason)
            self.clear()
        if chunk.chunk_idx in self._chunks:
            return False
        self._total = self._total or chunk.total_chunks
        self._digest = self._digest or chunk.digest
        limit = self._max_bytes if self._size is None else self._size
        if self._size_so_far + len(data) > limit:
            raise ChunkError(f"data: more than the {limit} bytes that the program may have")
        self._chunks[chunk.chunk_idx] = data
        self._size_so_far += len(data)
        return True

    def content(self) -> bytes:
        """The whole program, verified against what was announced.

        Raises:
            AssemblyError: its size or digest is another.
        """
        content = b"".join(self._chunks[number] for number in range(len(self._chunks)))
        if self._size is not None and len(content) != self._size:
            raise AssemblyError(f"size: {len(content)} bytes came where {self._size} were announced")
        if self._digest is not None and (found := digest_of(content)) != self._digest:
            raise AssemblyError(f"digest: the bytes that came are {found}, announced was {self._digest}")
        return content

    def clear(self) -> None:
        """Forget every chunk."""
        self._digest, self._size, self._total = self._announced
        self._chunks.clear()
        self._size_so_far = 0

    def _contradiction(self, chunk: ProgramChunk, data: bytes) -> str | None:
        if self._digest is not None and chunk.digest not in {None, self._digest}:
            return f"digest: {chunk.digest} is not the expected {self._digest}"
        if self._total not in {None, chunk.total_chunks}:
            return f"total_chunks: {chunk.total_chunks} where there are {self._total}"
        if self._chunks.get(chunk.chunk_idx, data) != data:
            return f"data: chunk {chunk.chunk_idx} has come with other bytes"
        return None
