"""What a task writes, read as it comes and bounded."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

_BUFFER = 256 * 1024


@dataclass(frozen=True)
class Sink:
    """Where a pipe's bytes go: ``on_data`` as they come, at most ``limit`` of them; ``over`` once if there are more."""

    limit: int
    on_data: Callable[[bytes], None]
    over: Callable[[], None]


NOWHERE = Sink(0, lambda _: None, lambda: None)


class Pipe:
    """Reads one pipe to its end; what is over the sink's limit is dropped, so that the writer never waits for us."""

    def __init__(self, sink: Sink) -> None:
        self._loop = asyncio.get_running_loop()
        self._room, self._on_data, self._over = sink.limit, sink.on_data, sink.over
        self._fd, self.writer = os.pipe()
        os.set_blocking(self._fd, False)
        self.ended = self._loop.create_future()
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        if not data:
            self.close()
            return
        if len(data) > self._room >= 0:
            data, exceeded = data[: self._room], True
        else:
            exceeded = False
        if self._room >= 0:
            self._room -= len(data)
            if data:
                self._on_data(data)
        if exceeded:
            self._room = -1
            self._over()

    def drain(self) -> None:
        """Read what is there, to the last byte; for a pipe whose writer writes no more."""
        while not self.ended.done():
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return
            self._take(data)

    def close(self) -> None:
        """Stop reading."""
        if not self.ended.done():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set_result(None)
