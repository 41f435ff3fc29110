"""Structured logs: one JSON object a line with the keys ``time``, ``level``, ``msg`` and the event's own."""

import contextlib
import functools
import io
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import structlog

from propeller.process.control_characters import escape_line
from propeller.process.log_file import MAX_BYTES, LogFile
from propeller.process.log_memory import LogMemory, read_end
from propeller.process.readable_lines import ReadableStream

_SECRET_NAMES = (
    "password", "secret", "token", "client_key", "api_key", "authorization", "credential", "private", "seed",
)  # fmt: skip

_MAX_KNOWN_KEYS = 1000

Form = Literal["auto", "json", "text"]
"""Of the lines on standard error."""


def _clean(value: Any) -> Any:
    """What JSON can hold of a value, secrets hidden at every depth."""
    if type(value) in _PLAIN:  # most are
        return value
    if isinstance(value, Mapping):
        return {str(key): _clean_item(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


_PLAIN = frozenset({str, int, bool, type(None)})


def _clean_item(key: str, value: Any) -> Any:
    return "***" if value and _is_secret(key) else _clean(value)


@functools.lru_cache(_MAX_KNOWN_KEYS)
def _is_secret(key: str) -> bool:
    return any(name in key.lower() for name in _SECRET_NAMES)


def _clean_event(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: value if key in _INTERNAL else _clean_item(key, value) for key, value in event.items()}


_INTERNAL = frozenset({"exc_info", "_record", "_from_structlog"})
"""Keys that structlog itself reads before the line is written."""


def _shape(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    text = str(event.pop("event")).strip()
    head = {"time": event.pop("timestamp"), "level": event.pop("level").upper(), "msg": text}
    return head | {key: value for key, value in event.items() if key not in head}


_ENCODE = json.JSONEncoder(default=str, ensure_ascii=False).encode
"""Made once: ``json.dumps`` makes one for each line, which costs as much as the encoding."""


def _render(_logger: Any, _method: str, event: structlog.typing.EventDict) -> str:
    """A line; what JSON leaves as it is and acts on a terminal is made harmless: C1, DEL, the direction of writing."""
    return escape_line(_ENCODE(event))


class _Lossy(io.TextIOBase):
    """Where logs go: a full disk costs lines, never the work that they tell of."""

    def __init__(self, stream: TextIO | io.TextIOBase, memory: LogMemory | None) -> None:
        self._stream, self._memory = stream, memory

    def write(self, text: str) -> int:
        if self._memory is not None:
            self._memory.write(text)
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


_memory: LogMemory | None = None


def remembered() -> LogMemory | None:
    """The newest lines of this process's log, if it remembers them."""
    return _memory


def configure(
    service: str,
    *,
    level: str = "info",
    file: Path | None = None,
    max_bytes: int = MAX_BYTES,
    remember: bool = False,
    form: Form = "auto",
) -> None:
    """Send this process's logs to ``file`` (appended, line by line, set aside at ``max_bytes``) or to standard error.

    A file has JSON. ``form`` is that of standard error; with ``auto`` a terminal gets lines for people, and everything else JSON.
    Standard-library loggers (uvicorn, httpx, sqlalchemy, …) and Python's warnings go the same way, from warnings up.
    With ``remember`` the newest are in memory, too.
    """
    global _memory  # noqa: PLW0603 - logs are the process's, as the loggers are
    out = _standard_error(form) if file is None else LogFile(file, max_bytes)
    _memory = LogMemory([] if file is None else read_end(file)) if remember else None
    stream = cast("TextIO", _Lossy(out, _memory))
    threshold = logging.getLevelNamesMapping().get(level.strip().upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _clean_event,
        structlog.processors.format_exc_info,
        _shape,
    ]
    structlog.configure(
        processors=[*shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared[:-1],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _shape,
                _render,
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)


def _standard_error(form: Form) -> TextIO | io.TextIOBase:
    is_terminal = sys.stderr.isatty()
    if form == "json" or (form == "auto" and not is_terminal):
        return sys.stderr
    return ReadableStream(sys.stderr, colours=is_terminal and not os.environ.get("NO_COLOR"))


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry ``component=name``; call it as ``log.info("message", key=value)``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=name)
    return logger
