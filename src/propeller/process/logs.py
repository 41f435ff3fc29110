"""Structured logs: one JSON object a line with the keys ``time``, ``level``, ``msg`` and the event's own."""

import logging
import sys
from pathlib import Path
from typing import Any, TextIO

import structlog

_SECRET_NAMES = ("password", "secret", "token", "client_key", "api_key", "authorization", "private", "seed")


def _hide_secrets(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    for key in event:
        if any(name in key.lower() for name in _SECRET_NAMES) and event[key]:
            event[key] = "***"
    return event


def _shape(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    head = {"time": event.pop("timestamp"), "level": event.pop("level").upper(), "msg": event.pop("event")}
    return {**head, **event}


def configure(service: str, *, level: str = "info", file: Path | None = None) -> None:
    """Send this process's logs to ``file`` (appended, line by line) or to standard error.

    Standard-library loggers (uvicorn, httpx, sqlalchemy, …) go the same way, from warnings up.
    """
    stream: TextIO = sys.stderr
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a", encoding="utf-8", buffering=1)
    threshold = logging.getLevelNamesMapping().get(level.strip().upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
        structlog.processors.format_exc_info,
        _shape,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(default=str, ensure_ascii=False)],
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
                structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry ``component=name``; call it as ``log.info("message", key=value)``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=name)
    return logger
