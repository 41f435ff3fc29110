"""What a task writes to its standard output and standard error: read as it comes, bounded, and cut into lines."""

import asyncio
import codecs
import os
from collections.abc import Callable
from dataclasses import dataclass

_BUFFER_BYTES = 256 * 1024
_MAX_LINE_CHARACTERS = 16 * 1024
"""A longer line is handed on in parts of this size."""


@dataclass(frozen=True)
class OutputSink:
    """Where a pipe's bytes go: ``on_data`` as they come, at most ``max_bytes``; ``on_excess`` once if there are more."""

    max_bytes: int
    on_data: Callable[[bytes], None]
    on_excess: Callable[[], None]


DISCARD = OutputSink(0, lambda _: None, lambda: None)


class OutputPipe:
    """Reads one pipe to its end; what is over the sink's bound is dropped, so that the writer never waits for us.

    Attributes:
        write_end: the descriptor for the writer; whoever hands it on closes it.
        closed: done when nothing is read any more.
    """

    def __init__(self, sink: OutputSink) -> None:
        self._loop = asyncio.get_running_loop()
        self._sink, self._room = sink, sink.max_bytes
        self._exceeded = False
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._read_end, self._read)

    def drain(self) -> None:
        """Read what is there, to the last byte; for a pipe whose writer writes no more."""
        while not self.closed.done() and self._read():
            pass

    def close(self) -> None:
        """Stop reading."""
        if not self.closed.done():
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self.closed.set_result(None)

    def _read(self) -> bool:
        """Read once; whether there was anything to read, the end included."""
        try:
            data = os.read(self._read_end, _BUFFER_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
        elif not self._exceeded:
            self._deliver(data)
        return True

    def _deliver(self, data: bytes) -> None:
        within = data[: self._room]
        self._room -= len(within)
        if within:
            self._sink.on_data(within)
        if len(data) > len(within):
            self._exceeded = True
            self._sink.on_excess()


class LineSplitter:
    """Bytes in, and a call with each whole line, without its end."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._on_line is None:
            return
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._on_line(line.removesuffix("\r"))
        while len(self._rest) > _MAX_LINE_CHARACTERS:
            self._on_line(self._rest[:_MAX_LINE_CHARACTERS])
            self._rest = self._rest[_MAX_LINE_CHARACTERS:]

    def end(self) -> None:
        """Hand on what is left without a line end."""
        if self._on_line is not None and self._rest:
            self._on_line(self._rest)
            self._rest = ""
